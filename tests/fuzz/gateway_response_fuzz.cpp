// Any bytes as an instance's answer: refused, or passed on as an answer that reads the same, with one framing.
#include "parse_in_pieces.h"

namespace {

using moonpool::gateway::ResponseParser;
using moonpool::gateway::fuzz::Outcome;
using moonpool::gateway::fuzz::parse;
using moonpool::gateway::fuzz::require;
namespace http = moonpool::gateway::http;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  ResponseParser answer;
  ResponseParser in_pieces;
  std::size_t used = 0;
  std::size_t used_in_pieces = 0;
  const Outcome outcome = parse(answer, bytes, size + 1, used);
  // What is wrong may be seen sooner or later, what is right always.
  require((outcome == Outcome::kWhole) == (parse(in_pieces, bytes, 1 + size % 7, used_in_pieces) == Outcome::kWhole));
  if (outcome != Outcome::kWhole || answer.status < 200) return 0;
  require(used == used_in_pieces && answer.status == in_pieces.status && answer.body == in_pieces.body);

  const moonpool::gateway::AnswerShape shape{moonpool::gateway::Framing::kLength, answer.body.size(), true, "id"};
  const std::string passed_on = moonpool::gateway::relayed_response_head(answer, shape) + answer.body;
  ResponseParser again;
  std::size_t used_again = 0;
  const Outcome outcome_again = parse(again, passed_on + "HTTP/1.1 200 OK\r\n\r\n", passed_on.size() + 19, used_again);
  // A head at its limit grows by what the gateway adds.
  if (outcome_again == Outcome::kRefused && passed_on.size() - answer.body.size() > 60'000) return 0;
  require(outcome_again == Outcome::kWhole && used_again == passed_on.size());
  require(again.status == answer.status && again.body == answer.body && !again.headers.has(http::field::transfer_encoding));
  return 0;
}
