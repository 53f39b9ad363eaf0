#include "transfer/cuda/kernels/kernel_image.h"

#ifdef MOONPOOL_KERNEL_IMAGE

// Assembled here rather than compiled from an array of numbers: the file is the library's data as it is.
asm(R"(
  .pushsection .rodata.moonpool_kernel_image, "a"
  .balign 16
  .hidden moonpool_kernel_image_begin
  .globl moonpool_kernel_image_begin
moonpool_kernel_image_begin:
  .incbin ")" MOONPOOL_KERNEL_IMAGE R"("
  .hidden moonpool_kernel_image_end
  .globl moonpool_kernel_image_end
moonpool_kernel_image_end:
  .popsection
)");

extern "C" {
extern const std::byte moonpool_kernel_image_begin[] __attribute__((visibility("hidden")));
extern const std::byte moonpool_kernel_image_end[] __attribute__((visibility("hidden")));
}

namespace moonpool::transfer::cuda {
std::span<const std::byte> kernel_image() { return {moonpool_kernel_image_begin, moonpool_kernel_image_end}; }
}  // namespace moonpool::transfer::cuda

#else

namespace moonpool::transfer::cuda {
std::span<const std::byte> kernel_image() { return {}; }
}  // namespace moonpool::transfer::cuda

#endif
