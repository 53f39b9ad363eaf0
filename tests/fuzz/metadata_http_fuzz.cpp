// A whole HTTP request as it comes from the network, through the parser with the server's limits, to the metadata service.
#include <boost/asio/buffer.hpp>
#include <boost/beast/http.hpp>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "metadata/embedded_store.h"
#include "metadata/metadata_http_service.h"
#include "net/http_url.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  namespace http = boost::beast::http;
  using namespace moonpool;
  http::request_parser<http::string_body> parser;
  parser.header_limit(32U << 10);
  parser.body_limit(1U << 20);
  parser.eager(true);
  boost::system::error_code error;
  parser.put(boost::asio::const_buffer(data, size), error);
  if (error || !parser.is_done()) return 0;
  const auto message = parser.release();
  auto target = net::parse_request_target(message.target());
  if (!target) return 0;
  static metadata::EmbeddedStore store(1U << 20);
  const metadata::MetadataHttpService service(store);
  const auto response = service({std::string(message.method_string()), target->path, target->query, {}, message.body(), "fuzz"});
  if (response.status < 200 || response.status > 503) std::abort();
  return 0;
}
