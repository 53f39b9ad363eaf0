#include "gateway/json_member.h"

namespace moonpool::gateway {

JsonMembers::JsonMembers(std::string_view object) : text_(object) {
  skip_space();
  good_ = at_ < text_.size() && text_[at_] == '{';
  ++at_;
}

bool JsonMembers::next() {
  if (!good_) return false;
  good_ = false;
  skip_space();
  if (at_ < text_.size() && text_[at_] == ',') {
    ++at_;
    skip_space();
  }
  if (at_ >= text_.size() || text_[at_] != '"') return false;
  const std::size_t key_end = end_of_string(at_);
  if (key_end == std::string_view::npos) return false;
  key_ = text_.substr(at_ + 1, key_end - at_ - 2);
  at_ = key_end;
  skip_space();
  if (at_ >= text_.size() || text_[at_] != ':') return false;
  ++at_;
  skip_space();
  const std::size_t end = end_of_value(at_);
  if (end == std::string_view::npos || end == at_) return false;
  value_ = text_.substr(at_, end - at_);
  at_ = end;
  good_ = true;
  return true;
}

void JsonMembers::skip_space() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) ++at_;
}

std::size_t JsonMembers::end_of_string(std::size_t at) const {
  for (++at; (at = text_.find('"', at)) != std::string_view::npos; ++at) {
    std::size_t backslashes = 0;  // the opening quote ends this walk
    while (text_[at - backslashes - 1] == '\\') ++backslashes;
    if (backslashes % 2 == 0) return at + 1;
  }
  return std::string_view::npos;
}

std::size_t JsonMembers::end_of_value(std::size_t at) const {
  if (at >= text_.size()) return std::string_view::npos;
  if (text_[at] == '"') return end_of_string(at);
  if (text_[at] != '{' && text_[at] != '[') {
    const std::size_t end = text_.find_first_of(",}] \t\r\n", at);
    return end == std::string_view::npos ? text_.size() : end;
  }
  std::size_t depth = 0;
  while ((at = text_.find_first_of("\"{}[]", at)) != std::string_view::npos) {
    const char c = text_[at];
    if (c == '"') {
      at = end_of_string(at);
      if (at == std::string_view::npos) return at;
      continue;
    }
    ++at;
    if (c == '{' || c == '[') {
      ++depth;
    } else if (--depth == 0) {
      return at;
    }
  }
  return std::string_view::npos;
}

std::string_view json_member(std::string_view object, std::string_view key) {
  JsonMembers members(object);
  while (members.next()) {
    if (members.key() == key) return members.value();
  }
  return {};
}

PromptParts prompt_parts(std::string_view body) {
  PromptParts parts;
  JsonMembers members(body);
  while (members.next()) {
    const std::string_view key = members.key();
    if (key == "messages" || key == "prompt" || key == "input") {
      if (parts.prompt.empty()) parts.prompt = members.value();
    } else if (key == "model") {
      parts.model = members.value();
    } else if (key == "cache_salt") {
      parts.cache_salt = members.value();
    }
  }
  return parts;
}

}  // namespace moonpool::gateway
