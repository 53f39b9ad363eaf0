#include "base/version.h"

namespace moonpool {

std::string_view version() { return MOONPOOL_VERSION; }

std::string product_name() { return "moonpool " + std::string(version()); }

}  // namespace moonpool
