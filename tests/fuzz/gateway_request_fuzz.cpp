// Any bytes as a client's request: refused, or sent on as a request that reads the same to every parser, with one framing.
#include "parse_in_pieces.h"

namespace {

using moonpool::gateway::RequestParser;
using moonpool::gateway::fuzz::Outcome;
using moonpool::gateway::fuzz::parse;
using moonpool::gateway::fuzz::require;
namespace http = moonpool::gateway::http;

constexpr std::uint32_t kHeadAtMost = 1 << 20;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  RequestParser request(kHeadAtMost, 1 << 20);
  RequestParser in_pieces(kHeadAtMost, 1 << 20);
  std::size_t used = 0;
  std::size_t used_in_pieces = 0;
  const Outcome outcome = parse(request, bytes, size + 1, used);
  // What is wrong may be seen sooner or later, what is right always.
  require((outcome == Outcome::kWhole) == (parse(in_pieces, bytes, 1 + size % 7, used_in_pieces) == Outcome::kWhole));
  if (outcome != Outcome::kWhole) return 0;
  require(used == used_in_pieces && request.body == in_pieces.body && request.target == in_pieces.target);

  const std::string fields = moonpool::gateway::forwarded_request_fields(request.headers, "id", true);
  const std::string head = moonpool::gateway::upstream_request_head(request.method_text, request.target, "host:1", fields,
                                                                    request.body.size(), "traceparent: 00-1-2-00\r\n");
  // The head's only blank line is its last, and no line hides another.
  require(head.find("\r\n\r\n") == head.size() - 4);
  for (std::size_t i = 0; i < head.size(); ++i) {
    const auto byte = static_cast<unsigned char>(head[i]);
    require(byte >= ' ' || byte == '\t' || (byte == '\r' && head[i + 1] == '\n') || (byte == '\n' && head[i - 1] == '\r'));
  }
  RequestParser again(kHeadAtMost * 2, 1 << 20);
  std::size_t used_again = 0;
  require(parse(again, head + request.body + "GET / HTTP/1.1\r\n\r\n", head.size() + request.body.size() + 18, used_again) ==
          Outcome::kWhole);
  require(used_again == head.size() + request.body.size());
  require(again.method_text == request.method_text && again.target == request.target && again.body == request.body);
  require(!again.headers.has(http::field::transfer_encoding) && again.headers.get("x-api-key").empty());
  return 0;
}
