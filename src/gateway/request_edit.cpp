#include "gateway/request_edit.h"

#include <array>
#include <charconv>
#include <optional>
#include <vector>

namespace moonpool::gateway {

namespace {

constexpr std::size_t kDeepestNesting = 1000;

enum class Field {
  kOther,
  kMaxTokens,
  kMaxCompletionTokens,
  kMinTokens,
  kStream,
  kStreamOptions,
  kPrompt,
  kMessages,
  kTemperature,
  kN,
  kBestOf,
  kUseBeamSearch,
  kKvTransferParams
};

// One top-level member. The segment is all between two separators, so joining the segments with commas restores the body.
struct Member {
  Field field = Field::kOther;
  std::size_t segment_begin = 0;
  std::size_t segment_end = 0;
  std::size_t value_begin = 0;
  std::size_t value_end = 0;
};

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// The key with its escapes resolved. Anything beyond ASCII becomes '?': no field of ours has any.
std::string unescape(std::string_view key) {
  std::string plain;
  for (std::size_t i = 0; i < key.size(); ++i) {
    if (key[i] != '\\') {
      plain += key[i];
      continue;
    }
    if (++i == key.size()) break;
    if (key[i] != 'u') {
      plain += key[i] == '/' || key[i] == '"' || key[i] == '\\' ? key[i] : '?';
      continue;
    }
    const std::string_view digits = key.substr(i + 1, 4);
    unsigned code = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    const bool valid = digits.size() == 4 && error == std::errc() && end == digits.data() + digits.size();
    plain += valid && code < 0x80 ? static_cast<char>(code) : '?';
    i += std::min<std::size_t>(4, digits.size());
  }
  return plain;
}

Field classify(std::string_view key) {
  std::string plain;
  if (key.find('\\') != std::string_view::npos) {
    plain = unescape(key);
    key = plain;
  }
  if (key == "max_tokens") return Field::kMaxTokens;
  if (key == "max_completion_tokens") return Field::kMaxCompletionTokens;
  if (key == "min_tokens") return Field::kMinTokens;
  if (key == "stream") return Field::kStream;
  if (key == "stream_options") return Field::kStreamOptions;
  if (key == "prompt") return Field::kPrompt;
  if (key == "messages") return Field::kMessages;
  if (key == "temperature") return Field::kTemperature;
  if (key == "n") return Field::kN;
  if (key == "best_of") return Field::kBestOf;
  if (key == "use_beam_search") return Field::kUseBeamSearch;
  if (key == "kv_transfer_params") return Field::kKvTransferParams;
  return Field::kOther;
}

class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  // The members of the one object that the text has to be; nullopt with reason() and position() otherwise.
  std::optional<std::vector<Member>> members() {
    std::vector<Member> found;
    skip_space();
    if (!take('{')) return fail("a JSON object was expected");
    opening_ = position_;
    std::size_t segment_begin = position_;
    skip_space();
    if (take('}')) return finish(std::move(found));
    for (;;) {
      Member member;
      member.segment_begin = segment_begin;
      if (!read_member(member)) return std::nullopt;
      skip_space();
      member.segment_end = position_;
      found.push_back(member);
      if (take('}')) return finish(std::move(found));
      if (!take(',')) return fail("',' or '}' was expected");
      segment_begin = position_;
    }
  }

  bool whole_value() {
    skip_space();
    if (!skip_value()) return false;
    skip_space();
    return position_ == text_.size();
  }

  // The text is a list of strings or lists (not of token ids), and has more than one.
  bool has_several_prompts() {
    if (!take('[')) return false;
    skip_space();
    const bool prompts = position_ < text_.size() && (text_[position_] == '"' || text_[position_] == '[');
    if (!prompts || !skip_value()) return false;
    skip_space();
    return take(',');
  }

  [[nodiscard]] std::size_t opening() const { return opening_; }  // just behind the first '{'
  [[nodiscard]] std::size_t position() const { return position_; }
  [[nodiscard]] const char* reason() const { return reason_; }

 private:
  // The first reason stands: what follows it is a consequence. Converts to "no members" and to "not skipped".
  struct Failure {
    operator std::optional<std::vector<Member>>() const { return std::nullopt; }  // NOLINT(google-explicit-constructor)
    operator bool() const { return false; }                                       // NOLINT(google-explicit-constructor)
  };
  Failure fail(const char* reason) {
    if (reason_ == nullptr) reason_ = reason;
    return {};
  }

  std::optional<std::vector<Member>> finish(std::vector<Member> found) {
    skip_space();
    if (position_ != text_.size()) return fail("something follows the JSON object");
    return found;
  }

  bool read_member(Member& member) {
    skip_space();
    const std::size_t key_begin = position_ + 1;
    if (position_ == text_.size() || text_[position_] != '"' || !skip_string()) {
      return fail("a field name in double quotes was expected");
    }
    member.field = classify(text_.substr(key_begin, position_ - 1 - key_begin));
    skip_space();
    if (!take(':')) {
      return fail("':' was expected");
    }
    skip_space();
    member.value_begin = position_;
    if (!skip_value()) {
      return fail("a value was expected");
    }
    member.value_end = position_;
    return true;
  }

  bool skip_value() {
    if (position_ == text_.size()) return false;
    const char c = text_[position_];
    if (c == '"') return skip_string();
    if (c == '{' || c == '[') return skip_nested();
    const std::size_t begin = position_;
    while (position_ < text_.size() && is_scalar(text_[position_])) ++position_;
    return position_ > begin;
  }

  static bool is_scalar(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '+' || c == '.';
  }

  bool skip_string() {
    for (++position_; position_ < text_.size(); ++position_) {
      if (text_[position_] == '\\') {
        ++position_;
      } else if (text_[position_] == '"') {
        ++position_;
        return true;
      }
    }
    position_ = text_.size();
    return fail("a string is not closed");
  }

  bool skip_nested() {
    std::string closers;
    while (position_ < text_.size()) {
      const char c = text_[position_];
      if (c == '"') {
        if (!skip_string()) return false;
        continue;
      }
      ++position_;
      if (c == '{' || c == '[') {
        closers += c == '{' ? '}' : ']';
        if (closers.size() > kDeepestNesting) return fail("it is nested too deeply");
      } else if (c == '}' || c == ']') {
        if (closers.back() != c) return fail("a bracket does not match");
        closers.pop_back();
        if (closers.empty()) return true;
      }
    }
    return fail("a bracket is not closed");
  }

  bool take(char c) {
    if (position_ == text_.size() || text_[position_] != c) return false;
    ++position_;
    return true;
  }

  void skip_space() {
    while (position_ < text_.size() && is_space(text_[position_])) ++position_;
  }

  std::string_view text_;
  std::size_t position_ = 0;
  std::size_t opening_ = 0;
  const char* reason_ = nullptr;
};

bool is_empty_value(std::string_view value) {
  if (value.size() < 2 || (value.front() != '"' && value.front() != '[')) return false;
  for (const char c : value.substr(1, value.size() - 2)) {
    if (value.front() == '"' || !is_space(c)) return false;
  }
  return true;
}

bool is_zero(std::string_view value) {
  double number = 1;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  return error == std::errc() && end == value.data() + value.size() && number == 0;
}

bool is_one_or_null(std::string_view value) {
  double number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  return value == "null" || (error == std::errc() && end == value.data() + value.size() && number == 1);
}

// How many sequences a request asks for. A repeated field counts as a parser would take it: the last one wins.
class Sequences {
 public:
  void note(Field field, std::string_view value) {
    if (field == Field::kPrompt) prompts_ = Scanner(value).has_several_prompts();
    if (field == Field::kN) choices_ = !is_one_or_null(value);
    if (field == Field::kBestOf) candidates_ = !is_one_or_null(value);
    if (field == Field::kUseBeamSearch) beams_ = value == "true";
  }
  [[nodiscard]] bool several() const { return prompts_ || choices_ || candidates_ || beams_; }

 private:
  bool prompts_ = false;
  bool choices_ = false;
  bool candidates_ = false;
  bool beams_ = false;
};

// What a member's value becomes, or nullopt where it stays.
std::optional<std::string_view> replacement(const Member& member, std::string_view value) {
  switch (member.field) {
    case Field::kMaxTokens:
      return "1";
    case Field::kMaxCompletionTokens:
      return "1";
    case Field::kMinTokens:
      return value == "0" || value == "null" ? std::nullopt : std::optional<std::string_view>("1");
    case Field::kStream:
      return "false";
    default:
      return std::nullopt;
  }
}

}  // namespace

Result<PrefillBody> make_prefill_body(std::string_view body) {
  Scanner scanner(body);
  const auto members = scanner.members();
  if (!members) {
    return Status(ErrorCode::kInvalidParams, "the request body is not valid JSON: " + std::string(scanner.reason()) + " at byte " +
                                                 std::to_string(scanner.position()) + " of " + std::to_string(body.size()));
  }
  PrefillBody result;
  std::string& text = result.text;
  text.reserve(body.size() + 20);
  text.append(body.substr(0, scanner.opening()));

  bool first = true;
  bool has_max_tokens = false;
  for (const Member& member : *members) has_max_tokens = has_max_tokens || member.field == Field::kMaxTokens;
  if (!has_max_tokens) {
    text.append("\"max_tokens\":1");
    first = false;
  }
  std::size_t end = scanner.opening();
  Sequences sequences;
  for (const Member& member : *members) {
    end = member.segment_end;
    if (member.field == Field::kStreamOptions) continue;
    if (!first) text += ',';
    first = false;
    const std::string_view value = body.substr(member.value_begin, member.value_end - member.value_begin);
    // A repeated field counts as a parser would take it: the last one wins.
    if (member.field == Field::kPrompt || member.field == Field::kMessages) result.prompt_is_empty = is_empty_value(value);
    if (member.field == Field::kStream) result.is_streamed = value == "true";
    if (member.field == Field::kTemperature) result.is_greedy = is_zero(value);
    if (member.field == Field::kKvTransferParams) result.has_kv_transfer_params = true;
    sequences.note(member.field, value);
    text.append(body.substr(member.segment_begin, member.value_begin - member.segment_begin));
    text.append(replacement(member, value).value_or(value));
    text.append(body.substr(member.value_end, member.segment_end - member.value_end));
  }
  text.append(body.substr(end));
  result.has_several_sequences = sequences.several();
  return result;
}

void ask_for_token_ids(std::string& body) {
  constexpr std::string_view kField = R"("return_token_ids")";
  // Within a string it would be written with escapes.
  if (body.find(kField) != std::string::npos) return;
  // A prefill's body is an object with one field at least.
  body.insert(body.find('{') + 1, std::string(kField) + ":true,");
}

std::string with_kv_transfer_params(std::string_view body, std::string_view value) {
  Scanner scanner(body);
  const auto members = scanner.members();
  if (!members) return std::string(body);
  std::string text;
  text.reserve(body.size() + value.size() + 24);
  text.append(body.substr(0, scanner.opening()));
  bool first = true;
  if (!value.empty()) {
    text.append("\"kv_transfer_params\":").append(value);
    first = false;
  }
  std::size_t end = scanner.opening();
  for (const Member& member : *members) {
    end = member.segment_end;
    if (member.field == Field::kKvTransferParams) continue;
    if (!first) text += ',';
    first = false;
    text.append(body.substr(member.segment_begin, member.segment_end - member.segment_begin));
  }
  text.append(body.substr(end));
  return text;
}

bool is_whole_json(std::string_view text) { return Scanner(text).whole_value(); }

}  // namespace moonpool::gateway
