// Device memory as NICs reach it (GPUDirect RDMA): a range of it exported by the driver as a dma-buf, page by page.
//
// What a NIC writes there is seen by kernels and copies that begin after its completion was (DeviceFacts::no_dma_buf names devices where
// that does not hold), and it reads what work has written whose end was seen. Threads: any.
#pragma once

#include "transfer/cuda/driver/driver.h"
#include "transfer/dma_buf.h"
#include "transfer/registered_memory.h"

namespace moonpool::transfer::cuda {

struct ExportedMemory {
  net::UniqueFd file;
  DmaBuf buffer;  // of that file
};

// kNotSupported when the device, its driver or the kind of allocation (several behind one range) cannot; with the reason.
[[nodiscard]] Result<ExportedMemory> export_memory(Driver& driver, int device, const AddressRange& range);

}  // namespace moonpool::transfer::cuda
