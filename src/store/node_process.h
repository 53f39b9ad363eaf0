// The standalone storage process: a client that only lends memory and runs until it is told to stop.
#pragma once

namespace moonpool::store {

// `moonpool node` and `mooncake_client`: see node_flags.h. Serves until SIGINT or SIGTERM, then leaves the pool in order. Exit status 0
// after a signal, 1 when it cannot start, 2 when a flag is wrong. Called from main(), before any other thread exists: it blocks the two
// signals.
int run_node(int argc, char** argv);

}  // namespace moonpool::store
