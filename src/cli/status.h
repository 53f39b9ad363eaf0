// `moonpool status`: what a running master says of itself (GET /status at its admin port), laid out for people.
//
// The document is shown as it comes, field by field, so that a newer master's fields appear without a change here; counts of bytes (fields
// ending in "_bytes") also in units. Bytes from outside: any document gives a text or an error.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace moonpool::cli {

// One line a field, nested objects indented, lists numbered. kProtocol for what is not JSON.
[[nodiscard]] Result<std::string> format_status(std::string_view json);

// Flags --master host:port (127.0.0.1:9003, the admin port), --json for the document itself, --timeout seconds (3). The exit status: 0, 1
// when the master does not answer, 2 for a wrong command line.
int run_status(int argc, char** argv);

}  // namespace moonpool::cli
