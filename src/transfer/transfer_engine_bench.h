// The program transfer_engine_bench: how fast one engine reads or writes another's memory.
#pragma once

namespace moonpool::transfer {

// --mode=target registers a buffer and waits for SIGINT or SIGTERM; --mode=initiator moves batches of blocks from or to the first buffer of
// --segment_id for --duration seconds and prints GB/s and the latency of a batch. Flags as Mooncake's program of that name has them, with
// one or two dashes. Returns the process's exit status: 0, 1 when something failed, 2 for a bad flag. Called from main(), before any other
// thread exists: a target blocks the two signals and waits for them.
int run_transfer_engine_bench(int argc, char** argv);

}  // namespace moonpool::transfer
