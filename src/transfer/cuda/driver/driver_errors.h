// The errors of CUDA's calls as Statuses: which call, the error's name and text as CUDA has them, the device, and a remedy where there is
// one. Used by the loaded driver and by the fake one, so that both speak alike. Threads: any.
#pragma once

#include <limits>
#include <string_view>

#include "base/result.h"
#include "transfer/cuda/driver/cuda_api.h"

namespace moonpool::transfer::cuda {

inline constexpr int kNoDevice = std::numeric_limits<int>::min();  // the call is not about a device; no number that a caller may pass

// kNoAvailableHandle for out of memory, kNotSupported for what the device, the driver or this build cannot do, else kInternal.
[[nodiscard]] ErrorCode code_of(api::Result result);
// "cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (out of memory), device 0; free memory there". Name and text are those of cuGetErrorName and
// cuGetErrorString; a null one stands for an error that this driver does not know.
[[nodiscard]] Status call_failed(std::string_view call, api::Result result, const char* name, const char* text, int device,
                                 std::string_view remedy = {});

}  // namespace moonpool::transfer::cuda
