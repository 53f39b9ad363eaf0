// HTTP/1.1 messages as the gateway needs them: parsed with Beast's state machine, written as text.
//
// The parsers collect start line and fields, and append body bytes (already out of any chunked coding) to `body`, which the caller may
// take at any time: that is what lets a stream through as it arrives without a second copy. Messages are written by the functions
// below into one string, sent together with the body in one system call.
// Beast refuses both Content-Length and Transfer-Encoding, differing lengths, bare line feeds and folded lines beyond 4 KiB; on top of
// that a request's Transfer-Encoding has to be exactly "chunked", and HTTP versions other than 1.0 and 1.1 are refused.
// Threads: values.
#pragma once

#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/field.hpp>
#include <boost/beast/http/verb.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace moonpool::gateway {

namespace http = boost::beast::http;

struct HeaderField {
  http::field id = http::field::unknown;
  std::string name;
  std::string value;
};

class HeaderFields {
 public:
  void add(http::field id, std::string_view name, std::string_view value) {
    fields_.push_back({id, std::string(name), std::string(value)});
  }
  // The first field of that name, empty when there is none. Names compare without case.
  [[nodiscard]] std::string_view get(http::field id) const;
  [[nodiscard]] std::string_view get(std::string_view name) const;
  [[nodiscard]] bool has(http::field id) const;
  [[nodiscard]] const std::vector<HeaderField>& all() const { return fields_; }

 private:
  std::vector<HeaderField> fields_;
};

class RequestParser final : public http::basic_parser<true> {
 public:
  RequestParser(std::uint32_t header_limit, std::uint64_t body_limit);

  http::verb method = http::verb::unknown;
  std::string method_text;
  std::string target;  // path and query, as sent
  int version = 11;    // 10 or 11
  HeaderFields headers;
  std::string body;

  [[nodiscard]] std::string_view path() const;
  [[nodiscard]] bool expects_continue() const;

 private:
  using Error = boost::beast::error_code;
  using View = boost::beast::string_view;
  void on_request_impl(http::verb verb, View text, View where, int http_version, Error& error) override;
  void on_response_impl(int, View, int, Error&) override {}
  void on_field_impl(http::field id, View name, View value, Error& error) override;
  void on_header_impl(Error&) override {}
  void on_body_init_impl(const boost::optional<std::uint64_t>& length, Error& error) override;
  std::size_t on_body_impl(View bytes, Error& error) override;
  void on_chunk_header_impl(std::uint64_t, View, Error&) override {}
  std::size_t on_chunk_body_impl(std::uint64_t remaining, View bytes, Error& error) override;
  void on_finish_impl(Error&) override {}
};

class ResponseParser final : public http::basic_parser<false> {
 public:
  ResponseParser();

  unsigned status = 0;
  std::string reason;
  HeaderFields headers;
  std::string body;  // what has arrived and was not taken yet

  [[nodiscard]] bool is_event_stream() const;

 private:
  using Error = boost::beast::error_code;
  using View = boost::beast::string_view;
  void on_request_impl(http::verb, View, View, int, Error&) override {}
  void on_response_impl(int code, View text, int http_version, Error& error) override;
  void on_field_impl(http::field id, View name, View value, Error& error) override;
  void on_header_impl(Error&) override {}
  void on_body_init_impl(const boost::optional<std::uint64_t>&, Error&) override {}
  std::size_t on_body_impl(View bytes, Error& error) override;
  void on_chunk_header_impl(std::uint64_t, View, Error&) override {}
  std::size_t on_chunk_body_impl(std::uint64_t remaining, View bytes, Error& error) override;
  void on_finish_impl(Error&) override {}
};

// The client's fields as lines for an upstream request: without hop-by-hop fields, those that Connection names, Host, Content-Length,
// Accept-Encoding (the gateway reads the answers), the gateway's own admin key, and traceparent, which each hop gets anew; tracestate goes
// along with `with_tracestate` alone (trace_context.h). Adds X-Request-Id where the client sent none.
[[nodiscard]] std::string forwarded_request_fields(const HeaderFields& headers, std::string_view request_id, bool with_tracestate);
// Start line and fields of an upstream request, blank line included. Both kinds of fields are whole lines.
[[nodiscard]] std::string upstream_request_head(std::string_view method, std::string_view target, std::string_view host,
                                                std::string_view forwarded_fields, std::size_t body_bytes,
                                                std::string_view hop_fields = {});

// How the body of an answer to the client is delimited.
enum class Framing { kLength, kChunked, kUntilClose };
struct AnswerShape {
  Framing framing = Framing::kLength;
  std::size_t body_bytes = 0;  // for kLength
  bool keep_alive = true;
  std::string_view request_id;  // sent as X-Request-Id unless the upstream's answer has one
};
// Head of an upstream's answer as passed on to the client: hop-by-hop fields replaced by our own framing.
[[nodiscard]] std::string relayed_response_head(const ResponseParser& upstream, const AnswerShape& shape);
// Head of an answer of our own. `extra_fields` are whole lines.
[[nodiscard]] std::string own_response_head(unsigned status, std::string_view content_type, const AnswerShape& shape,
                                            std::string_view extra_fields = {});

// An error as OpenAI clients expect it: {"error": {"message", "type", "param", "code"}}, the type derived from the status.
[[nodiscard]] std::string openai_error(unsigned status, std::string_view message);

// One chunk of the chunked coding.
[[nodiscard]] std::string chunk_head(std::size_t bytes);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

[[nodiscard]] bool equals_ignoring_case(std::string_view a, std::string_view b);

}  // namespace moonpool::gateway
