// HTTP/1.1 messages as the gateway needs them: parsed with Beast's state machine, written as text.
//
// The parsers collect start line and fields, and append body bytes (already out of any chunked coding) to `body`, which the caller may
// take at any time: that is what lets a stream through as it arrives without a second copy. Messages are written by the functions
// below into one string, sent together with the body in one system call.
// What two parsers might read in two ways is refused, so that no request hides in another (RFC 9112, 11.2). Beast refuses both
// Content-Length and Transfer-Encoding, differing lengths, space before a colon, bare line ends and control characters; on top of that, in
// requests: any second Content-Length or Host, lists of lengths, any Transfer-Encoding but "chunked" (and that in HTTP/1.0), folded lines,
// targets with bytes that a URL does not have, control characters in chunk extensions, more than kFieldsAtMost fields, heads that exceed
// the limit in small pieces. Trailers are dropped. In answers: any Transfer-Encoding but "chunked". Threads: values.
#pragma once

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/field.hpp>
#include <boost/beast/http/verb.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace moonpool::gateway {

namespace http = boost::beast::http;

inline constexpr std::size_t kFieldsAtMost = 256;

struct HeaderField {
  http::field id = http::field::unknown;
  std::string_view name;
  std::string_view value;
};

// The fields of one message, in their order. Their texts live here, the usual head without a single allocation; views of them are good
// as long as this is.
class HeaderFields {
 public:
  HeaderFields() { fields_.reserve(kUsualFields); }
  HeaderFields(const HeaderFields& other) : HeaderFields() { *this = other; }
  HeaderFields& operator=(const HeaderFields& other) {
    if (this == &other) return *this;
    fields_.clear();
    for (const HeaderField& field : other.fields_) add(field.id, field.name, field.value);
    return *this;
  }

  void add(http::field id, std::string_view name, std::string_view value) { fields_.push_back({id, keep(name), keep(value)}); }
  // The first field of that name, empty when there is none. Names compare without case.
  [[nodiscard]] std::string_view get(http::field id) const;
  [[nodiscard]] std::string_view get(std::string_view name) const;
  [[nodiscard]] bool has(http::field id) const;
  [[nodiscard]] std::span<const HeaderField> all() const { return fields_; }

 private:
  static constexpr std::size_t kUsualFields = 12;
  static constexpr std::size_t kUsualBytes = kUsualFields * sizeof(HeaderField) + 512;

  [[nodiscard]] std::string_view keep(std::string_view text) {
    if (text.empty()) return {};
    auto* copy = static_cast<char*>(memory_.allocate(text.size(), 1));
    std::memcpy(copy, text.data(), text.size());
    return {copy, text.size()};
  }

  std::array<std::byte, kUsualBytes> usual_;
  std::pmr::monotonic_buffer_resource memory_{usual_.data(), usual_.size()};
  std::pmr::vector<HeaderField> fields_{&memory_};
};

class RequestParser final : public http::basic_parser<true> {
 public:
  RequestParser(std::uint32_t header_limit, std::uint64_t body_limit);

  http::verb method = http::verb::unknown;
  std::string method_text;
  std::string target;  // path and query, as sent; out of http://host/path too
  int version = 11;    // 10 or 11
  HeaderFields headers;
  std::string body;

  [[nodiscard]] std::string_view path() const;
  [[nodiscard]] bool expects_continue() const;
  // As basic_parser's, but what it leaves because a chunk's line or a trailer is not whole yet is bounded.
  std::size_t put(boost::asio::const_buffer bytes, boost::beast::error_code& error);

 private:
  using Error = boost::beast::error_code;
  using View = boost::beast::string_view;
  void on_request_impl(http::verb verb, View text, View where, int http_version, Error& error) override;
  void on_response_impl(int, View, int, Error&) override {}
  void on_field_impl(http::field id, View name, View value, Error& error) override;
  void on_header_impl(Error&) override {}
  void on_body_init_impl(const boost::optional<std::uint64_t>& length, Error& error) override;
  std::size_t on_body_impl(View bytes, Error& error) override;
  void on_chunk_header_impl(std::uint64_t size, View extension, Error& error) override;
  std::size_t on_chunk_body_impl(std::uint64_t remaining, View bytes, Error& error) override;
  void on_finish_impl(Error&) override {}

  std::size_t head_bytes_left_;
};

class ResponseParser final : public http::basic_parser<false> {
 public:
  ResponseParser();

  unsigned status = 0;
  std::string reason;
  HeaderFields headers;
  std::string body;  // what has arrived and was not taken yet

  [[nodiscard]] bool is_event_stream() const;
  // As RequestParser's.
  std::size_t put(boost::asio::const_buffer bytes, boost::beast::error_code& error);

 private:
  using Error = boost::beast::error_code;
  using View = boost::beast::string_view;
  void on_request_impl(http::verb, View, View, int, Error&) override {}
  void on_response_impl(int code, View text, int http_version, Error& error) override;
  void on_field_impl(http::field id, View name, View value, Error& error) override;
  void on_header_impl(Error&) override {}
  void on_body_init_impl(const boost::optional<std::uint64_t>&, Error&) override {}
  std::size_t on_body_impl(View bytes, Error& error) override;
  void on_chunk_header_impl(std::uint64_t size, View extension, Error& error) override;
  std::size_t on_chunk_body_impl(std::uint64_t remaining, View bytes, Error& error) override;
  void on_finish_impl(Error&) override {}

  std::size_t head_bytes_left_;
};

// The client's fields as lines for an upstream request: without hop-by-hop fields, those that Connection names, Host, Content-Length,
// Accept-Encoding (the gateway reads the answers), the gateway's own admin key, and traceparent, which each hop gets anew; tracestate goes
// along with `with_tracestate` alone (trace_context.h). Adds X-Request-Id where the client sent none. `authorization` stands in the place
// of the client's own where it is given; an empty one: none.
[[nodiscard]] std::string forwarded_request_fields(const HeaderFields& headers, std::string_view request_id, bool with_tracestate,
                                                   const std::optional<std::string>& authorization = std::nullopt);
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
  std::string_view request_id;        // sent as X-Request-Id unless the upstream's answer has one
  std::string_view more_fields = {};  // whole lines of a relayed answer's head
};
// Head of an upstream's answer as passed on to the client: hop-by-hop fields replaced by our own framing.
[[nodiscard]] std::string relayed_response_head(const ResponseParser& upstream, const AnswerShape& shape);
// Head of an answer of our own. `extra_fields` are whole lines.
[[nodiscard]] std::string own_response_head(unsigned status, std::string_view content_type, const AnswerShape& shape,
                                            std::string_view extra_fields = {});

// An error as OpenAI clients expect it: {"error": {"message", "type", "param", "code"}}, the type derived from the status.
[[nodiscard]] std::string openai_error(unsigned status, std::string_view message);
// The same with a word as its code instead of the status.
[[nodiscard]] std::string openai_error(unsigned status, std::string_view message, std::string_view code);

// One chunk of the chunked coding.
[[nodiscard]] std::string chunk_head(std::size_t bytes);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

[[nodiscard]] bool equals_ignoring_case(std::string_view a, std::string_view b);

}  // namespace moonpool::gateway
