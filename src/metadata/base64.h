// Base64 of RFC 4648 with padding, as etcd's JSON gateway wraps its bytes.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace moonpool::metadata {

[[nodiscard]] std::string base64_encode(std::string_view bytes);
// nullopt for anything that base64_encode() would not have written, but for spare bits, which are ignored.
[[nodiscard]] std::optional<std::string> base64_decode(std::string_view text);

}  // namespace moonpool::metadata
