// Any bytes as a configuration file: settings or an error of one line, never a crash.
#include <cstdlib>

#include "gateway/config_file.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace moonpool::gateway;
  const auto settings = apply_config(std::string_view(reinterpret_cast<const char*>(data), size), "file", Settings());
  if (!settings.ok() && !settings.status().message().starts_with("file, line ")) std::abort();
  return 0;
}
