// What etcd's JSON gateway answers, parsed. Bytes from outside: any input gives a value or an error (tests/fuzz/etcd_reply_fuzz.cpp).
//
// The gateway leaves out fields that have their default (no "kvs": nothing found; no "value": empty; no "deleted": 0) and writes 64-bit
// numbers as strings. Threads: pure functions.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace moonpool::metadata {

// The value in an answer of /v3/kv/range, nullopt if there is none. kProtocol if the text is not such an answer.
[[nodiscard]] Result<std::optional<std::string>> parse_etcd_range(std::string_view body);
// Whether an answer of /v3/kv/deleterange says that something was deleted.
[[nodiscard]] Result<bool> parse_etcd_delete(std::string_view body);
// The message in an error answer, or the start of the text if it is none; fit for a log line.
[[nodiscard]] std::string etcd_error_text(std::string_view body);

}  // namespace moonpool::metadata
