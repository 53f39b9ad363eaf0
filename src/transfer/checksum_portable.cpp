// See checksum_kernel.h.
#define MOONPOOL_CHECKSUM_KERNEL kPortableKernel
#include "transfer/checksum_kernel.h"
