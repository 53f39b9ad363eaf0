// The address of an instance as people write it: host:port, 10.0.0.2:8100 or [fd00::2]:8100; https:// before it for one that speaks TLS,
// http:// for one that does not whatever the settings say.
//
// A value with one spelling per address (host names are lower-cased, an IPv6 address is written in its canonical form), so that
// "already in the group" is a comparison of strings. Nothing is resolved here.
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace moonpool::gateway {

class InstanceName {
 public:
  // The error says what is wrong with `text` and shows the forms.
  [[nodiscard]] static Result<InstanceName> parse(std::string_view text);

  [[nodiscard]] const std::string& host() const { return host_; }  // without brackets
  [[nodiscard]] std::uint16_t port() const { return port_; }
  [[nodiscard]] bool is_literal() const { return literal_; }                  // an IP address: no DNS needed
  [[nodiscard]] bool is_secure() const { return scheme_ == Scheme::kHttps; }  // TLS is spoken there
  // This one, over TLS unless it was written with http://.
  [[nodiscard]] InstanceName secured() const;
  [[nodiscard]] const std::string& to_string() const { return text_; }  // with https:// for TLS, with brackets where needed
  [[nodiscard]] std::string_view authority() const;                     // the same without a scheme: fit for a Host header

  friend bool operator==(const InstanceName& a, const InstanceName& b) { return a.text_ == b.text_; }

 private:
  enum class Scheme { kUnsaid, kHttp, kHttps };

  InstanceName() = default;

  std::string host_;
  std::string text_;
  std::uint16_t port_ = 0;
  bool literal_ = false;
  Scheme scheme_ = Scheme::kUnsaid;
};

}  // namespace moonpool::gateway
