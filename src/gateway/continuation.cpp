#include "gateway/continuation.h"

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <boost/json/monotonic_resource.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

namespace moonpool::gateway {

namespace {

namespace json = boost::json;

constexpr std::int64_t kDefaultMaxTokens = 16;  // of /v1/completions

std::string_view view_of(const json::string& text) { return {text.data(), text.size()}; }

std::string_view string_in(const json::object& object, std::string_view key) {
  const auto* value = object.if_contains(json::string_view(key.data(), key.size()));
  return value != nullptr && value->is_string() ? view_of(value->get_string()) : std::string_view();
}

std::optional<std::int64_t> integer_of(const json::value& value) {
  boost::system::error_code error;
  const auto number = value.to_number<std::int64_t>(error);
  return error ? std::nullopt : std::optional<std::int64_t>(number);
}

std::optional<std::int64_t> integer_in(const json::object& object, json::string_view key) {
  const auto* value = object.if_contains(key);
  return value == nullptr ? std::nullopt : integer_of(*value);
}

const json::object* object_in(const json::object& object, json::string_view key) {
  const auto* value = object.if_contains(key);
  return value != nullptr ? value->if_object() : nullptr;
}

bool is_true(const json::object& object, json::string_view key) {
  const auto* value = object.if_contains(key);
  return value != nullptr && value->is_bool() && value->get_bool();
}

// Present and neither null nor false nor 0 nor an empty string, list or object.
bool is_set(const json::object& object, json::string_view key) {
  const auto* value = object.if_contains(key);
  if (value == nullptr || value->is_null()) return false;
  if (value->is_bool()) return value->get_bool();
  if (value->is_string()) return !value->get_string().empty();
  if (value->is_array()) return !value->get_array().empty();
  if (value->is_object()) return !value->get_object().empty();
  boost::system::error_code error;
  return value->to_number<double>(error) != 0;
}

bool is_one_or_absent(const json::object& object, json::string_view key) {
  const auto* value = object.if_contains(key);
  return value == nullptr || value->is_null() || integer_of(*value) == 1;
}

bool append_ids(const json::object& object, json::string_view key, std::vector<std::int64_t>& ids) {
  const auto* value = object.if_contains(key);
  if (value == nullptr || !value->is_array()) return false;
  for (const auto& one : value->get_array()) ids.push_back(integer_of(one).value_or(-1));
  return true;
}

// A text may be cut here: the tokenizer will make the same tokens of it. White space joins the word behind it in most tokenizers, and
// U+FFFD stands for a character that was not whole yet.
bool ends_well(std::string_view text) {
  const char last = text.back();
  return last != ' ' && last != '\n' && last != '\t' && last != '\r' && !text.ends_with("\xEF\xBF\xBD");
}

// The next line without its end; `lines` moves behind it.
std::string_view take_line(std::string_view& lines) {
  const std::size_t end = std::min(lines.find('\n'), lines.size());
  std::string_view line = lines.substr(0, end);
  lines.remove_prefix(std::min(end + 1, lines.size()));
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

// What a data line carries, or nullopt for another kind of line.
std::optional<std::string_view> payload_of(std::string_view line) {
  constexpr std::string_view kField = "data:";
  if (!line.starts_with(kField)) return std::nullopt;
  line.remove_prefix(kField.size());
  while (line.starts_with(' ')) line.remove_prefix(1);
  return line;
}

std::string_view text_in(const json::object& choice, bool chat) {
  if (!chat) return string_in(choice, "text");
  const auto* delta = object_in(choice, "delta");
  return delta == nullptr ? std::string_view() : string_in(*delta, "content");
}

}  // namespace

Continuation::Continuation(std::string_view path, std::string_view body, bool exact, bool may_estimate)
    : chat_(path.ends_with("/chat/completions")), exact_(exact), may_estimate_(may_estimate), body_(body) {}

void Continuation::sent(std::string_view lines) {
  if (obstacle_ != nullptr) return;
  if (!lines.ends_with('\n') && !lines.empty()) {
    obstacle_ = "an event was too long to be held whole";
    return;
  }
  while (!lines.empty()) {
    const auto payload = payload_of(take_line(lines));
    if (!payload || *payload == "[DONE]" || sent_like_the_last(*payload)) continue;
    std::array<unsigned char, 4096> memory;  // NOLINT(cppcoreguidelines-pro-type-member-init): filled by the parser
    json::monotonic_resource resource(memory.data(), memory.size());
    boost::system::error_code error;
    const json::value event = json::parse(json::string_view(payload->data(), payload->size()), error, &resource);
    if (error || !event.is_object()) {
      obstacle_ = "an event was not a JSON object";
      return;
    }
    sent_event(event.get_object());
    learn(*payload, event.get_object());
  }
  if (text_.size() + ids_.size() * sizeof(ids_[0]) > kHeldAtMost) obstacle_ = "the answer is too long to be kept";
}

bool Continuation::sent_like_the_last(std::string_view payload) {
  if (before_text_.empty() || payload.size() <= before_text_.size() + behind_text_.size()) return false;
  if (!payload.starts_with(before_text_) || !payload.ends_with(behind_text_)) return false;
  const std::string_view text = payload.substr(before_text_.size(), payload.size() - before_text_.size() - behind_text_.size());
  if (text.find('"') != std::string_view::npos || text.find('\\') != std::string_view::npos) return false;
  text_.append(text);
  ++now_.tokens;
  estimated_ = true;
  progress();
  return true;
}

void Continuation::learn(std::string_view payload, const json::object& event) {
  const auto* choices = event.if_contains("choices");
  if (finish_sent_ || obstacle_ != nullptr || !ids_.empty() || object_in(event, "usage") != nullptr) return;
  if (choices == nullptr || !choices->is_array() || choices->get_array().empty()) return;
  const std::string_view text = text_in(choices->get_array()[0].get_object(), chat_);
  // The quotes cannot be within a string: there they would be escaped.
  const std::string_view key = chat_ ? R"("content":")" : R"("text":")";
  const std::size_t found = payload.find(key);
  if (text.empty() || found == std::string_view::npos || payload.find(key, found + 1) != std::string_view::npos) return;
  const std::size_t begin = found + key.size();
  if (payload.substr(begin, text.size()) != text || !payload.substr(begin + text.size()).starts_with('"')) return;
  before_text_ = payload.substr(0, begin);
  behind_text_ = payload.substr(begin + text.size());
}

void Continuation::progress() {
  if (text_.size() == now_.text && ids_.size() == now_.ids) return;
  now_.text = text_.size();
  now_.ids = ids_.size();
  if (!exact_ || (!text_.empty() && ends_well(text_))) stable_ = now_;
}

void Continuation::sent_event(const json::object& event) {
  if (id_.empty()) {
    id_ = string_in(event, "id");
    model_ = string_in(event, "model");
    created_ = integer_in(event, "created");
  }
  if (prompt_ids_.empty()) append_ids(event, "prompt_token_ids", prompt_ids_);
  const auto* usage = object_in(event, "usage");
  const auto* choices = event.if_contains("choices");
  const bool has_choice = choices != nullptr && choices->is_array() && !choices->get_array().empty();
  if (usage != nullptr) {
    prompt_tokens_ = integer_in(*usage, "prompt_tokens");
    usage_sent_ = usage_sent_ || !has_choice;
  }
  if (!has_choice) return;
  const auto* choice = choices->get_array()[0].if_object();
  if (choices->get_array().size() != 1 || choice == nullptr || integer_in(*choice, "index").value_or(0) != 0) {
    obstacle_ = "the answer has several choices";
    return;
  }
  sent_choice(*choice);
  if (usage != nullptr) {
    now_.tokens = static_cast<std::uint64_t>(integer_in(*usage, "completion_tokens").value_or(0));
    estimated_ = false;
  }
  progress();
}

void Continuation::sent_choice(const json::object& choice) {
  bool role_alone = false;
  if (const auto* delta = object_in(choice, "delta"); delta != nullptr) {
    for (const auto& member : *delta) {
      if (member.key() == "role") {
        role_alone = !role_sent_;
        role_sent_ = true;
      } else if (member.key() != "content" && is_set(*delta, member.key())) {
        obstacle_ = "the answer has more than text (tools, reasoning)";
      }
    }
  }
  if (prompt_ids_.empty()) append_ids(choice, "prompt_token_ids", prompt_ids_);
  const std::string_view text = text_in(choice, chat_);
  text_.append(text);
  const std::size_t ids_before = ids_.size();
  if (append_ids(choice, "token_ids", ids_)) {
    now_.tokens += ids_.size() - ids_before;
  } else if (!role_alone || !text.empty()) {
    ++now_.tokens;
    estimated_ = true;
  }
  finish_sent_ = finish_sent_ || is_set(choice, "finish_reason");
}

bool Continuation::finished() {
  if (!finish_sent_ || obstacle_in_request() != nullptr) return false;
  const auto* options = object_in(*request_, "stream_options");
  return usage_sent_ || options == nullptr || !is_true(*options, "include_usage");
}

const char* Continuation::obstacle_in_request() {
  if (obstacle_ != nullptr || request_) return obstacle_;
  boost::system::error_code error;
  json::value parsed = json::parse(json::string_view(body_.data(), body_.size()), error);
  if (error || !parsed.is_object()) return obstacle_ = "the request is not the JSON that it seemed to be";
  request_ = std::move(parsed.get_object());
  const json::object& request = *request_;
  if (!is_one_or_absent(request, "n") || !is_one_or_absent(request, "best_of") || is_set(request, "use_beam_search")) {
    return obstacle_ = "the request asks for several choices";
  }
  for (const char* field : {"echo", "suffix", "logprobs", "prompt_logprobs", "top_logprobs", "truncate_prompt_tokens", "prompt_embeds",
                            "include_stop_str_in_output", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
                            "guided_grammar", "continue_final_message", "functions"}) {
    if (is_set(request, field))
      return obstacle_ = "the request has a field whose effect would begin anew (echo, logprobs, guided output...)";
  }
  if (const auto* format = object_in(request, "response_format"); format != nullptr && string_in(*format, "type") != "text") {
    return obstacle_ = "the request has a response_format";
  }
  if (is_set(request, "tools") && string_in(request, "tool_choice") != "none") return obstacle_ = "the request has tools";
  if (exact_ && (is_set(request, "presence_penalty") || is_set(request, "frequency_penalty"))) {
    return obstacle_ = "the request has a penalty on the tokens of its answer";
  }
  if (const auto* prompt = request.if_contains("add_generation_prompt"); prompt != nullptr && prompt->is_bool() && !prompt->get_bool()) {
    return obstacle_ = "the request has no generation prompt";
  }
  return nullptr;
}

const char* Continuation::lower_limits(json::object& body) const {
  const auto kept = static_cast<std::int64_t>(kept_.tokens);
  if (kept == 0) return nullptr;
  if (!chat_ && !body.contains("max_tokens")) body["max_tokens"] = kDefaultMaxTokens;
  for (const char* field : {"max_tokens", "max_completion_tokens"}) {
    const auto limit = integer_in(body, field);
    if (!limit) continue;
    if (*limit <= kept) return "all tokens that were asked for were sent";
    body[field] = *limit - kept;
  }
  if (const auto least = integer_in(body, "min_tokens"); least) body["min_tokens"] = std::max<std::int64_t>(0, *least - kept);
  return nullptr;
}

const char* Continuation::extend_prompt(json::object& body) {
  // A stop string holds text back behind the tokens, which would be missing between the two: then the text decides.
  const bool has_ids = kept_.ids != 0 && !prompt_ids_.empty() && !is_set(body, "stop");
  auto* prompt = body.if_contains("prompt");
  if (prompt != nullptr && prompt->is_array() && prompt->get_array().size() == 1 && !prompt->get_array()[0].is_number()) {
    json::value only = std::move(prompt->get_array()[0]);
    *prompt = std::move(only);
  }
  if (prompt == nullptr || !(prompt->is_string() || prompt->is_array())) return "the request has no prompt that text can follow";
  if (has_ids) {
    json::array ids(prompt_ids_.begin(), prompt_ids_.end());
    ids.insert(ids.end(), ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(kept_.ids));
    *prompt = std::move(ids);
    return nullptr;
  }
  if (!prompt->is_string()) return "the prompt is a list and the stream carried no token ids (return_token_ids)";
  prompt->get_string().append(json::string_view(text_.data(), kept_.text));
  return nullptr;
}

const char* Continuation::extend_messages(json::object& body) const {
  auto* messages = body.if_contains("messages");
  if (messages == nullptr || !messages->is_array() || messages->get_array().empty()) return "the request has no messages";
  const auto* last = messages->get_array().back().if_object();
  if (last != nullptr && string_in(*last, "role") == "assistant") return "the last message is the assistant's own";
  messages->get_array().push_back({{"role", "assistant"}, {"content", json::string(text_.data(), kept_.text)}});
  body["continue_final_message"] = true;
  body["add_generation_prompt"] = false;
  return nullptr;
}

Result<std::string> Continuation::next_body() {
  const auto refused = [](const char* why) { return Status(ErrorCode::kNotSupported, why); };
  if (const char* why = obstacle_in_request(); why != nullptr) return refused(why);
  if (finish_sent_) return refused("only its usage was missing, which no other instance knows");
  if (estimated_ && !may_estimate_) {
    return refused(
        "its events do not say how many tokens they carry, and the rest could end a few too early or late: ask for return_token_ids, or "
        "for "
        "stream_options.continuous_usage_stats, or start the gateway with --continue-streams always");
  }
  kept_ = stable_;
  before_ = now_;
  repeated_ = 0;
  repeated_ids_ = 0;
  if (kept_.text == 0 && kept_.ids == 0) {
    kept_ = {};
    return std::string(body_);
  }
  json::object body = *request_;
  const char* why = chat_ ? extend_messages(body) : extend_prompt(body);
  if (why == nullptr) why = lower_limits(body);
  if (why != nullptr) return refused(why);
  body.erase("kv_transfer_params");  // they tell of blocks for the client's own prompt
  return json::serialize(body);
}

Result<std::string> Continuation::rewrite(std::string_view lines) {
  std::string out;
  while (!lines.empty()) {
    const std::string_view line = take_line(lines);
    if (line.empty()) continue;  // each event gets its own below
    const auto payload = payload_of(line);
    if (!payload || *payload == "[DONE]") {
      out.append(line).append("\n\n");
      continue;
    }
    boost::system::error_code error;
    json::value event = json::parse(json::string_view(payload->data(), payload->size()), error);
    if (error || !event.is_object()) return Status(ErrorCode::kNotSupported, "the continuation has an event that is not a JSON object");
    MOONPOOL_RETURN_IF_ERROR(rewrite_event(event.get_object(), out));
  }
  return out;
}

Status Continuation::rewrite_event(json::object& event, std::string& out) {
  rewrite_identity(event);
  event.erase("prompt_token_ids");
  if (auto* usage = event.if_contains("usage"); usage != nullptr && usage->is_object()) rewrite_usage(usage->get_object());
  auto* choices = event.if_contains("choices");
  if (choices != nullptr && choices->is_array() && !choices->get_array().empty()) {
    auto* choice = choices->get_array()[0].if_object();
    if (choice == nullptr) return Status(ErrorCode::kNotSupported, "the continuation has a choice that is not a JSON object");
    auto has_news = rewrite_choice(*choice);
    if (!has_news.ok()) return has_news.status();
    if (!*has_news) return Status();
  }
  out.append("data: ").append(json::serialize(event)).append("\n\n");
  return Status();
}

Result<bool> Continuation::rewrite_choice(json::object& choice) {
  const Status differs(ErrorCode::kNotSupported, "the continuation does not repeat what was sent last");
  choice.erase("prompt_token_ids");
  bool repeats = false;
  auto* delta = choice.if_contains("delta");
  json::object* holder = chat_ ? (delta != nullptr ? delta->if_object() : nullptr) : &choice;
  if (holder != nullptr && chat_ && role_sent_ && holder->erase("role") != 0) repeats = true;
  if (auto* ids = choice.if_contains("token_ids"); ids != nullptr && ids->is_array()) {
    auto& list = ids->get_array();
    while (!list.empty() && kept_.ids + repeated_ids_ < before_.ids) {
      if (integer_of(list[0]) != ids_[kept_.ids + repeated_ids_]) return differs;
      ++repeated_ids_;
      list.erase(list.begin());
    }
  }
  auto* text = holder != nullptr ? holder->if_contains(chat_ ? "content" : "text") : nullptr;
  const bool has_text = text != nullptr && text->is_string();
  if (has_text && kept_.text + repeated_ < before_.text) {
    const std::string_view missing = std::string_view(text_).substr(kept_.text + repeated_, before_.text - kept_.text - repeated_);
    auto& fresh = text->get_string();
    const std::size_t shared = std::min(missing.size(), fresh.size());
    if (view_of(fresh).substr(0, shared) != missing.substr(0, shared)) return differs;
    fresh.erase(0, shared);
    repeated_ += shared;
    repeats = true;
  }
  const bool ends = is_set(choice, "finish_reason");
  if (ends && kept_.text + repeated_ < before_.text) return differs;
  const bool empty = !has_text || text->get_string().empty();
  return ends || !repeats || !empty;
}

void Continuation::rewrite_usage(json::object& usage) const {
  const auto kept = static_cast<std::int64_t>(kept_.tokens);
  const auto prompt = integer_in(usage, "prompt_tokens");
  const auto completion = integer_in(usage, "completion_tokens");
  if (!prompt || !completion || kept == 0) return;
  std::int64_t own = prompt_tokens_.value_or(std::max<std::int64_t>(0, *prompt - kept));
  if (!prompt_ids_.empty()) own = static_cast<std::int64_t>(prompt_ids_.size());
  usage["prompt_tokens"] = own;
  usage["completion_tokens"] = *completion + kept;
  if (usage.contains("total_tokens")) usage["total_tokens"] = own + *completion + kept;
}

void Continuation::rewrite_identity(json::object& event) const {
  if (!id_.empty() && event.contains("id")) event["id"] = json::string(id_.data(), id_.size());
  if (!model_.empty() && event.contains("model")) event["model"] = json::string(model_.data(), model_.size());
  if (created_ && event.contains("created")) event["created"] = *created_;
}

}  // namespace moonpool::gateway
