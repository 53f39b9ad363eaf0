// The program mooncake_http_metadata_server: an EmbeddedStore behind MetadataHttpService, until SIGINT or SIGTERM.
#pragma once

namespace moonpool::metadata {

// Flags --host (127.0.0.1) and --port (8080; 0 lets the kernel choose), with one or two dashes; prints the address it serves. Returns the
// exit status of the process: 0 after a signal, 2 for a bad flag, 1 if it cannot listen.
// Called from main(), before any other thread exists: it blocks the two signals and waits for them.
int run_http_metadata_server(int argc, char** argv);

}  // namespace moonpool::metadata
