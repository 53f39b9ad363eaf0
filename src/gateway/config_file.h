// The gateway's configuration file: JSON with groups, policies, time-outs and limits (docs/gateway.md has an example).
//
// Everything is optional; a field that is unknown or has a wrong value is an error that names file, line and field, and what is allowed
// there. Bytes from outside: any input gives settings or an error (tests/fuzz/gateway_config_fuzz.cpp). Threads: pure functions.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "gateway/settings.h"

namespace moonpool::gateway {

// `base` with what the text says. kConfig otherwise; `name` stands for the file in the error.
[[nodiscard]] Result<Settings> apply_config(std::string_view text, const std::string& name, Settings base);
// The same for a file of at most 1 MiB. A relative "keys_file" is one beside it.
[[nodiscard]] Result<Settings> read_config_file(const std::string& path, Settings base);

// A file of keys alone, {"keys": [...]}, over those that are there.
[[nodiscard]] Result<KeyRing> apply_keys(std::string_view text, const std::string& name, KeyRing base);
[[nodiscard]] Result<KeyRing> read_keys_file(const std::string& path, KeyRing base);

}  // namespace moonpool::gateway
