#include "transfer/cuda/driver/driver_errors.h"

#include <spdlog/fmt/fmt.h>

#include <string>

namespace moonpool::transfer::cuda {

ErrorCode code_of(api::Result result) {
  switch (result) {
    case api::Result::kSuccess:
      return ErrorCode::kOk;
    case api::Result::kOutOfMemory:
      return ErrorCode::kNoAvailableHandle;
    case api::Result::kHostMemoryAlreadyRegistered:
      return ErrorCode::kSegmentAlreadyExists;
    case api::Result::kStubLibrary:
    case api::Result::kCallRequiresNewerDriver:
    case api::Result::kNoDevice:
    case api::Result::kNoBinaryForGpu:
    case api::Result::kPeerAccessUnsupported:
    case api::Result::kInvalidPtx:
    case api::Result::kJitCompilerNotFound:
    case api::Result::kUnsupportedPtxVersion:
    case api::Result::kJitCompilationDisabled:
    case api::Result::kTooManyPeers:
    case api::Result::kNotPermitted:
    case api::Result::kNotSupported:
    case api::Result::kSystemNotReady:
    case api::Result::kSystemDriverMismatch:
    case api::Result::kCompatNotSupportedOnDevice:
      return ErrorCode::kNotSupported;
    default:
      return ErrorCode::kInternal;
  }
}

Status call_failed(std::string_view call, api::Result result, const char* name, const char* text, int device, std::string_view remedy) {
  std::string message = name != nullptr ? fmt::format("{}: {}", call, name) : fmt::format("{}: CUDA error {}", call, int(result));
  if (text != nullptr) message += fmt::format(" ({})", text);
  if (device != kNoDevice) message += fmt::format(", device {}", device);
  if (!remedy.empty()) message += fmt::format("; {}", remedy);
  return {code_of(result), std::move(message)};
}

}  // namespace moonpool::transfer::cuda
