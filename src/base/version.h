// Which release of Moonpool this is: the file VERSION of the source tree.
//
// Cost: none; one object file is compiled again when the version changes. Threads: any.
#pragma once

#include <string>
#include <string_view>

namespace moonpool {

[[nodiscard]] std::string_view version();
// "moonpool 0.1.0": what a process calls itself in the handshake.
[[nodiscard]] std::string product_name();

}  // namespace moonpool
