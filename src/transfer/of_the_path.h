// Whose fault an operation's error is: the path's, so that another way may do better, or its own.
#pragma once

#include "base/result.h"

namespace moonpool::transfer {

[[nodiscard]] inline bool of_the_path(const Status& status) {
  return status.code() == ErrorCode::kUnavailable || status.code() == ErrorCode::kNotSupported;
}

}  // namespace moonpool::transfer
