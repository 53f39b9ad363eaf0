// `moonpool gateway`: the command line of the gateway's process.
#pragma once

namespace moonpool::gateway {

// Runs until SIGTERM or SIGINT; reads its configuration again at SIGHUP and when the files of --config or --keys-file change. 0 after a graceful stop
// (running requests were finished, or the drain time was up), 1 when it could not start (the reason is on standard error), 2 for a wrong
// command line. argv[0] is the program's name.
int run_gateway(int argc, char** argv);

}  // namespace moonpool::gateway
