// The kernels' own source (piece_kernels.cu) on host threads, for the fake driver and for tests of the arithmetic: a block is a group of
// threads with a barrier in place of __syncthreads(), so that ThreadSanitizer finds what racecheck would.
//
// Each of a block's threads is a host thread for the length of the launch; blocks run one after the other. Teams of kEmulatedThreads are
// kept for later launches, and the kernels are right with any multiple of 32 threads: a user that emulates many launches passes that number
// whatever it was asked for. Launches may run at the same time.
#pragma once

#include <functional>

#include "transfer/cuda/driver/driver.h"

namespace moonpool::transfer::cuda {

inline constexpr std::uint32_t kEmulatedThreads = 32;

// Where the host finds the bytes behind a device's address (identity for pinned memory); null: no memory, which ends the launch with an
// error. Asked about tables, checksums, contiguous chunks and each chunk's part of a piece, never about more than is about to be touched;
// from all emulated threads at once.
using Translate = std::function<std::byte*(std::uint64_t address, std::uint64_t length)>;

// Runs a launch to its end. kInternal "illegal address 0x..., N bytes" as a device would report it (some of the launch's bytes may have
// been moved then), "invalid launch" for a shape that the kernels do not take.
[[nodiscard]] Status emulate(Kernel kernel, const LaunchShape& shape, const MoveArguments& arguments, const Translate& translate);

}  // namespace moonpool::transfer::cuda
