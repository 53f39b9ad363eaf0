#include "gateway/http_message.h"

#include <boost/beast/core/string.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/status.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <charconv>

namespace moonpool::gateway {

namespace {

constexpr std::size_t kAnswerHeadAtMost = std::size_t{64} * 1024;
constexpr std::size_t kChunkLineAtMost = std::size_t{16} * 1024;  // with its extensions; trailers, all of them
constexpr std::uint64_t kReserveAtMost = std::uint64_t{1} << 20;  // a stranger's Content-Length reserves no more than this

std::string_view view_of(boost::beast::string_view text) { return {text.data(), text.size()}; }

// RFC 9110, 7.6.1: these concern one connection only.
bool is_hop_by_hop(const HeaderField& field) {
  switch (field.id) {
    case http::field::connection:
    case http::field::keep_alive:
    case http::field::proxy_authenticate:
    case http::field::proxy_authorization:
    case http::field::proxy_connection:
    case http::field::te:
    case http::field::trailer:
    case http::field::transfer_encoding:
    case http::field::upgrade:
      return true;
    default:
      return false;
  }
}

// The values of all Connection fields, with commas between.
std::string connection_options(const HeaderFields& headers) {
  std::string list;
  for (const HeaderField& field : headers.all()) {
    if (field.id == http::field::connection) list.append(list.empty() ? "" : ",").append(field.value);
  }
  return list;
}

bool is_in_list(std::string_view list, std::string_view name) {
  while (!list.empty()) {
    const std::size_t comma = std::min(list.find(','), list.size());
    std::string_view token = list.substr(0, comma);
    while (!token.empty() && (token.front() == ' ' || token.front() == '\t')) token.remove_prefix(1);
    while (!token.empty() && (token.back() == ' ' || token.back() == '\t')) token.remove_suffix(1);
    if (equals_ignoring_case(token, name)) return true;
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return false;
}

void append_field(std::string& text, std::string_view name, std::string_view value) {
  text.append(name).append(": ").append(value).append("\r\n");
}

// Beast takes folded lines and joins them. A value that is whole lies behind its name and the space there; a joined one does not.
bool is_folded(boost::beast::string_view name, boost::beast::string_view value) {
  const char* at = name.data() + name.size() + 1;
  while (at != value.data() && (*at == ' ' || *at == '\t')) ++at;
  return at != value.data();
}

// Takes a field's bytes out of what a head may have; false when that is used up.
bool fits(boost::beast::string_view name, boost::beast::string_view value, std::size_t& bytes_left, std::size_t fields) {
  const std::size_t bytes = name.size() + value.size() + 4;  // ": " and the line's end
  if (bytes > bytes_left || fields >= kFieldsAtMost) return false;
  bytes_left -= bytes;
  return true;
}

bool is_target(std::string_view text) {
  if (text.empty() || text.front() != '/') return false;
  for (const char c : text) {
    if (c <= ' ' || c >= 0x7F || c == '#') return false;  // char may be signed: bytes from 128 up are below the space
  }
  return true;
}

// The path and query of http://host/path?query; any other target as it is.
std::string_view origin_form(std::string_view target) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (!equals_ignoring_case(target.substr(0, scheme.size()), scheme)) continue;
    const std::size_t path = target.find('/', scheme.size());
    return path == std::string_view::npos ? std::string_view("/") : target.substr(path);
  }
  return target;
}

bool has_control_characters(boost::beast::string_view text) {
  for (const char c : text) {
    if ((static_cast<unsigned char>(c) < ' ' && c != '\t') || c == 0x7F) return true;
  }
  return false;
}

template <bool is_request>
std::size_t put_bounded(http::basic_parser<is_request>& parser, boost::asio::const_buffer bytes, boost::beast::error_code& error) {
  const std::size_t used = parser.put(bytes, error);
  if (error == http::error::need_more && parser.is_header_done() && bytes.size() - used > kChunkLineAtMost) {
    error = http::error::bad_chunk_extension;
  }
  return used;
}

void append_framing(std::string& text, const AnswerShape& shape, bool bodiless = false) {
  if (shape.framing == Framing::kLength && !bodiless) append_field(text, "Content-Length", std::to_string(shape.body_bytes));
  if (shape.framing == Framing::kChunked && !bodiless) append_field(text, "Transfer-Encoding", "chunked");
  if (!shape.keep_alive || shape.framing == Framing::kUntilClose) append_field(text, "Connection", "close");
}

std::string_view error_type(unsigned status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

std::string error_text(unsigned status, std::string_view message, boost::json::value code) {
  const auto type = error_type(status);
  const boost::json::value document = {{"error",
                                        {{"message", boost::json::string(message.data(), message.size())},
                                         {"type", boost::json::string(type.data(), type.size())},
                                         {"param", nullptr},
                                         {"code", std::move(code)}}}};
  return boost::json::serialize(document);
}

}  // namespace

bool equals_ignoring_case(std::string_view a, std::string_view b) {
  return boost::beast::iequals(boost::beast::string_view(a.data(), a.size()), boost::beast::string_view(b.data(), b.size()));
}

std::string_view HeaderFields::get(http::field id) const {
  for (const HeaderField& field : fields_) {
    if (field.id == id) return field.value;
  }
  return {};
}

std::string_view HeaderFields::get(std::string_view name) const {
  for (const HeaderField& field : fields_) {
    if (equals_ignoring_case(field.name, name)) return field.value;
  }
  return {};
}

bool HeaderFields::has(http::field id) const {
  for (const HeaderField& field : fields_) {
    if (field.id == id) return true;
  }
  return false;
}

RequestParser::RequestParser(std::uint32_t headers_at_most, std::uint64_t body_at_most) : head_bytes_left_(headers_at_most) {
  header_limit(headers_at_most);
  body_limit(body_at_most);
  eager(true);
}

std::string_view RequestParser::path() const {
  const std::string_view whole = target;
  return whole.substr(0, std::min(whole.find('?'), whole.size()));
}

bool RequestParser::expects_continue() const { return equals_ignoring_case(headers.get(http::field::expect), "100-continue"); }

void RequestParser::on_request_impl(http::verb verb, View text, View where, int http_version, Error& error) {
  if (http_version != 10 && http_version != 11) error = http::error::bad_version;
  method = verb;
  method_text = view_of(text);
  target = origin_form(view_of(where));
  if (!error && !is_target(target)) error = http::error::bad_target;
  version = http_version;
  head_bytes_left_ -= std::min(head_bytes_left_, text.size() + where.size());
}

std::size_t RequestParser::put(boost::asio::const_buffer bytes, boost::beast::error_code& error) {
  return put_bounded<true>(*this, bytes, error);
}

void RequestParser::on_field_impl(http::field id, View name, View value, Error& error) {
  if (is_header_done()) return;  // a trailer: nobody asked for it
  if (is_folded(name, value)) {
    error = http::error::bad_value;
  } else if (!fits(name, value, head_bytes_left_, headers.all().size())) {
    error = http::error::header_limit;
  } else if (id == http::field::transfer_encoding) {
    if (version != 11 || !boost::beast::iequals(value, "chunked")) error = http::error::bad_transfer_encoding;
  } else if (id == http::field::content_length) {
    if (headers.has(id) || view_of(value).find_first_not_of("0123456789") != std::string_view::npos)
      error = http::error::bad_content_length;
  } else if (id == http::field::host) {
    if (headers.has(id)) error = http::error::bad_field;
  }
  if (!error) headers.add(id, view_of(name), view_of(value));
}

void RequestParser::on_chunk_header_impl(std::uint64_t, View extension, Error& error) {
  if (has_control_characters(extension)) error = http::error::bad_chunk_extension;
}

void RequestParser::on_body_init_impl(const boost::optional<std::uint64_t>& length, Error&) {
  if (length) body.reserve(static_cast<std::size_t>(std::min(*length, kReserveAtMost)));
}

std::size_t RequestParser::on_body_impl(View bytes, Error&) {
  body.append(bytes.data(), bytes.size());
  return bytes.size();
}

std::size_t RequestParser::on_chunk_body_impl(std::uint64_t, View bytes, Error&) {
  body.append(bytes.data(), bytes.size());
  return bytes.size();
}

ResponseParser::ResponseParser() : head_bytes_left_(kAnswerHeadAtMost) {
  header_limit(kAnswerHeadAtMost);
  body_limit(boost::none);
  eager(true);
}

bool ResponseParser::is_event_stream() const {
  const std::string_view type = headers.get(http::field::content_type);
  return equals_ignoring_case(type.substr(0, std::min(type.find(';'), type.size())), "text/event-stream");
}

void ResponseParser::on_response_impl(int code, View text, int, Error&) {
  status = static_cast<unsigned>(code);
  reason = view_of(text);
}

std::size_t ResponseParser::put(boost::asio::const_buffer bytes, boost::beast::error_code& error) {
  return put_bounded<false>(*this, bytes, error);
}

void ResponseParser::on_field_impl(http::field id, View name, View value, Error& error) {
  if (is_header_done()) return;  // a trailer: nobody asked for it
  if (!fits(name, value, head_bytes_left_, headers.all().size())) {
    error = http::error::header_limit;
  } else if (id == http::field::transfer_encoding && !boost::beast::iequals(value, "chunked")) {
    error = http::error::bad_transfer_encoding;
  } else {
    headers.add(id, view_of(name), view_of(value));
  }
}

void ResponseParser::on_chunk_header_impl(std::uint64_t, View extension, Error& error) {
  if (has_control_characters(extension)) error = http::error::bad_chunk_extension;
}

std::size_t ResponseParser::on_body_impl(View bytes, Error&) {
  body.append(bytes.data(), bytes.size());
  return bytes.size();
}

std::size_t ResponseParser::on_chunk_body_impl(std::uint64_t, View bytes, Error&) {
  body.append(bytes.data(), bytes.size());
  return bytes.size();
}

std::string forwarded_request_fields(const HeaderFields& headers, std::string_view request_id, bool with_tracestate,
                                     const std::optional<std::string>& authorization) {
  std::string text;
  text.reserve(512);
  bool has_request_id = false;
  const std::string connection = connection_options(headers);
  for (const HeaderField& field : headers.all()) {
    if (is_hop_by_hop(field) || field.id == http::field::host || field.id == http::field::content_length ||
        field.id == http::field::expect || field.id == http::field::accept_encoding || equals_ignoring_case(field.name, "x-api-key")) {
      continue;
    }
    if (!connection.empty() && is_in_list(connection, field.name)) continue;
    if (authorization && field.id == http::field::authorization) continue;
    if (equals_ignoring_case(field.name, "traceparent")) continue;
    if (!with_tracestate && equals_ignoring_case(field.name, "tracestate")) continue;
    has_request_id = has_request_id || equals_ignoring_case(field.name, "x-request-id");
    append_field(text, field.name, field.value);
  }
  if (authorization && !authorization->empty()) append_field(text, "Authorization", *authorization);
  if (!has_request_id) append_field(text, "X-Request-Id", request_id);
  return text;
}

std::string upstream_request_head(std::string_view method, std::string_view target, std::string_view host,
                                  std::string_view forwarded_fields, std::size_t body_bytes, std::string_view hop_fields) {
  std::string text;
  text.reserve(method.size() + target.size() + host.size() + forwarded_fields.size() + hop_fields.size() + 64);
  text.append(method).append(" ").append(target).append(" HTTP/1.1\r\n");
  append_field(text, "Host", host);
  text.append(forwarded_fields).append(hop_fields);
  if (body_bytes != 0 || method == "POST") append_field(text, "Content-Length", std::to_string(body_bytes));
  text.append("\r\n");
  return text;
}

std::string relayed_response_head(const ResponseParser& upstream, const AnswerShape& shape) {
  std::string text;
  text.reserve(512);
  text.append("HTTP/1.1 ").append(std::to_string(upstream.status)).append(" ").append(upstream.reason).append("\r\n");
  const std::string connection = connection_options(upstream.headers);
  bool has_request_id = false;
  for (const HeaderField& field : upstream.headers.all()) {
    if (is_hop_by_hop(field) || field.id == http::field::content_length) continue;
    if (!connection.empty() && is_in_list(connection, field.name)) continue;
    has_request_id = has_request_id || equals_ignoring_case(field.name, "x-request-id");
    append_field(text, field.name, field.value);
  }
  if (!has_request_id && !shape.request_id.empty()) append_field(text, "X-Request-Id", shape.request_id);
  text.append(shape.more_fields);
  append_framing(text, shape, upstream.status == 204 || upstream.status == 304);
  text.append("\r\n");
  return text;
}

std::string own_response_head(unsigned status, std::string_view content_type, const AnswerShape& shape, std::string_view extra_fields) {
  std::string text;
  text.reserve(256);
  const auto reason = http::obsolete_reason(static_cast<http::status>(status));
  text.append("HTTP/1.1 ").append(std::to_string(status)).append(" ").append(reason.data(), reason.size()).append("\r\n");
  if (!content_type.empty()) append_field(text, "Content-Type", content_type);
  if (!shape.request_id.empty()) append_field(text, "X-Request-Id", shape.request_id);
  text.append(extra_fields);
  append_framing(text, shape);
  text.append("\r\n");
  return text;
}

std::string openai_error(unsigned status, std::string_view message) { return error_text(status, message, status); }

std::string openai_error(unsigned status, std::string_view message, std::string_view code) {
  return error_text(status, message, boost::json::string(code.data(), code.size()));
}

std::string chunk_head(std::size_t bytes) {
  char digits[2 * sizeof(bytes)];
  const auto [end, error] = std::to_chars(digits, digits + sizeof(digits), bytes, 16);
  static_cast<void>(error);
  return std::string(digits, end) + "\r\n";
}

}  // namespace moonpool::gateway
