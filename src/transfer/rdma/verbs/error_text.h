// errno in words, on any thread.
#pragma once

#include <cstring>

namespace moonpool::transfer::rdma {

// Lives for ever.
[[nodiscard]] inline const char* error_text(int error) {
  const char* text = ::strerrordesc_np(error);
  return text == nullptr ? "unknown error" : text;
}

}  // namespace moonpool::transfer::rdma
