// See checksum_kernel.h.
#if defined(__x86_64__)
#define MOONPOOL_CHECKSUM_KERNEL kAvx512Kernel
#include "transfer/checksum_kernel.h"
#endif
