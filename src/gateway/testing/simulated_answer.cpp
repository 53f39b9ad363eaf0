#include "gateway/testing/simulated_answer.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <cstdio>
#include <utility>

namespace moonpool::gateway::testing {

namespace {

namespace json = boost::json;

json::object parse_object(const std::string& body) {
  boost::system::error_code error;
  auto document = json::parse(body, error);
  return error || !document.is_object() ? json::object() : std::move(document.get_object());
}

bool is_true(const json::object& object, json::string_view key) {
  const auto* value = object.if_contains(key);
  return value != nullptr && value->is_bool() && value->get_bool();
}

std::size_t number_in(const json::object& object, json::string_view key, std::size_t otherwise) {
  const auto* value = object.if_contains(key);
  boost::system::error_code error;
  const auto number = value == nullptr ? otherwise : value->to_number<std::size_t>(error);
  return error ? otherwise : number;
}

// The token ids of the simulated text are kFirstId, kFirstId + 1...; a prompt's are those of its words.
constexpr int kFirstId = 1000;

std::size_t tokens_at_end(const std::string& prompt, const std::vector<std::string>& tokens) {
  std::size_t found = 0;
  std::string beginning;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    beginning += tokens[i];
    if (prompt.ends_with(beginning)) found = i + 1;
  }
  return found;
}

json::object answer_object(const Job& job, const std::string& id, const std::string& model, bool chunk_of_stream) {
  const std::string kind = job.chat ? (chunk_of_stream ? "chat.completion.chunk" : "chat.completion") : "text_completion";
  return {{"id", id}, {"object", kind}, {"created", 1'700'000'000}, {"model", model}};
}

std::string event(json::object object) { return simulated_chunk("data: " + json::serialize(object) + "\n\n"); }

std::string token_event(const Job& job, const std::string& id, const std::string& model, const std::vector<std::string>& tokens,
                        std::size_t i) {
  json::object choice{{"index", 0}};
  if (job.chat) {
    choice["delta"] = json::object{{"content", tokens[i]}};
  } else {
    choice["text"] = tokens[i];
  }
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = nullptr;
  if (i + 1 == job.first + job.count) choice["finish_reason"] = job.cut_by_limit ? "length" : "stop";
  if (job.token_ids) {
    choice["token_ids"] = json::array{kFirstId + static_cast<int>(i)};
    if (i == job.first) {
      json::array prompt;
      for (std::size_t k = 0; k < job.prompt_tokens; ++k) prompt.push_back(static_cast<int>(k));
      choice["prompt_token_ids"] = std::move(prompt);
    }
  }
  json::object object = answer_object(job, id, model, true);
  object["choices"] = json::array{std::move(choice)};
  return event(std::move(object));
}

json::object usage_of(const Job& job) {
  return {{"prompt_tokens", job.prompt_tokens}, {"completion_tokens", job.count}, {"total_tokens", job.prompt_tokens + job.count}};
}

}  // namespace

std::string simulated_head(unsigned status, std::string_view type, std::size_t length, std::string_view extra) {
  return "HTTP/1.1 " + std::to_string(status) + " Simulated\r\nServer: simulator\r\n" + std::string(extra) +
         "Content-Type: " + std::string(type) + "\r\nContent-Length: " + std::to_string(length) + "\r\n\r\n";
}

std::string simulated_chunk(const std::string& bytes) {
  char size[20];
  std::snprintf(size, sizeof(size), "%zx\r\n", bytes.size());
  return size + bytes + "\r\n";
}

Job job_of(const SeenRequest& request, const std::vector<std::string>& tokens) {
  const json::object body = parse_object(request.body);
  Job job;
  job.chat = request.target.starts_with("/v1/chat/");
  job.streamed = is_true(body, "stream");
  job.token_ids = is_true(body, "return_token_ids");
  const auto* options = body.if_contains("stream_options");
  job.usage = options != nullptr && options->is_object() && is_true(options->get_object(), "include_usage");
  const auto* prompt = body.if_contains("prompt");
  const auto* messages = body.if_contains("messages");
  if (prompt != nullptr && prompt->is_string()) {
    const std::string text(prompt->get_string().c_str());
    job.first = tokens_at_end(text, tokens);
    job.prompt_tokens = 3 + job.first;
  } else if (prompt != nullptr && prompt->is_array()) {
    job.prompt_tokens = prompt->get_array().size();
    for (const auto& id : prompt->get_array()) job.first += id.is_int64() && id.get_int64() >= kFirstId ? 1 : 0;
  } else if (messages != nullptr && messages->is_array() && is_true(body, "continue_final_message")) {
    const std::string text(messages->get_array().back().at("content").get_string().c_str());
    job.first = tokens_at_end(text, tokens);
    job.prompt_tokens = 5 + job.first;
  } else {
    job.prompt_tokens = 5;
  }
  const std::size_t left = tokens.size() - job.first;
  job.count = std::min(left, std::min(number_in(body, "max_tokens", left), number_in(body, "max_completion_tokens", left)));
  job.cut_by_limit = job.count < left || body.contains("max_tokens");
  return job;
}

std::string SimulatedAnswer::plain_body() const {
  std::string joined;
  for (std::size_t i = 0; i < job.count; ++i) joined += now.tokens[job.first + i];
  json::object object = answer_object(job, id, model, false);
  object["served_by"] = served_by;
  json::object choice{{"index", 0}};
  if (job.chat) choice["message"] = json::object{{"role", "assistant"}, {"content", joined}};
  if (!job.chat) choice["text"] = joined;
  choice["finish_reason"] = !now.finish_reason.empty() ? now.finish_reason : job.cut_by_limit ? "length" : "stop";
  object["choices"] = json::array{std::move(choice)};
  object["usage"] = usage_of(job);
  object["kv_transfer_params"] = now.kv_transfer_params.empty() ? json::value(nullptr) : json::parse(now.kv_transfer_params);
  return json::serialize(object);
}

std::vector<Piece> SimulatedAnswer::plain_pieces() const {
  const std::string body = plain_body();
  // Only a chunked body can be malformed.
  const bool chunked = now.how == How::kMalformed && now.point == Point::kInBody;
  const std::string start = chunked ? "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
                                    : simulated_head(200, "application/json", body.size(), now.extra_fields);
  return {{start, Point::kRequestRead, Point::kInHead, false},
          {chunked ? simulated_chunk(body) + "0\r\n\r\n" : body, Point::kHeadSent, Point::kInBody, false}};
}

std::vector<Piece> SimulatedAnswer::stream_pieces() const {
  std::vector<Piece> pieces;
  pieces.push_back(
      {"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n" + now.extra_fields + "Transfer-Encoding: chunked\r\n\r\n",
       Point::kRequestRead, Point::kInHead, false});
  Point before = Point::kHeadSent;
  if (job.chat) {
    json::object object = answer_object(job, id, model, true);
    object["choices"] = json::array{
        json::object{{"index", 0}, {"delta", {{"role", "assistant"}, {"content", ""}}}, {"logprobs", nullptr}, {"finish_reason", nullptr}}};
    pieces.push_back({event(std::move(object)), std::exchange(before, Point::kNowhere), Point::kNowhere, false});
  }
  for (std::size_t i = 0; i < job.count; ++i) {
    const bool here = i == now.tokens_before_fault;
    Piece piece{token_event(job, id, model, now.tokens, job.first + i), std::exchange(before, Point::kNowhere), Point::kNowhere, true};
    if (here && now.point == Point::kBetweenTokens) piece.before = Point::kBetweenTokens;
    if (here && now.point == Point::kInToken) piece.within = Point::kInToken;
    pieces.push_back(std::move(piece));
  }
  if (job.usage) {
    json::object object = answer_object(job, id, model, true);
    object["choices"] = json::array();
    object["usage"] = usage_of(job);
    pieces.push_back({event(std::move(object)), std::exchange(before, Point::kNowhere), Point::kNowhere, false});
  }
  if (now.fault != Fault::kEndWithoutDone)
    pieces.push_back({simulated_chunk("data: [DONE]\n\n"), Point::kBeforeFinish, Point::kNowhere, false});
  pieces.push_back({"0\r\n\r\n", Point::kBeforeLastChunk, Point::kNowhere, false});
  return pieces;
}

}  // namespace moonpool::gateway::testing
