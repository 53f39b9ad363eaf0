// The moonpool program: the table of its commands.
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "cli/command_table.h"
#include "cli/doctor/doctor.h"
#include "cli/status.h"
#include "gateway/gateway_main.h"
#include "master/master.h"
#include "metadata/http_metadata_server.h"
#include "store/node_process.h"
#include "transfer/transfer_engine_bench.h"

namespace {

// The tooling of `up` is Python: that of the wheel that this program came with (its start script says which), else the one in PATH.
int run_up(int argc, char** argv) {
  const char* python = std::getenv("MOONPOOL_PYTHON");
  std::string interpreter = python != nullptr && *python != '\0' ? python : "python3";
  std::string program = "import sys; from moonpool.main import main; sys.exit(main(['up', *sys.argv[1:]]))";
  std::string flag = "-c";
  std::vector<char*> arguments = {interpreter.data(), flag.data(), program.data()};
  arguments.insert(arguments.end(), argv + 1, argv + argc);
  arguments.push_back(nullptr);
  execvp(interpreter.c_str(), arguments.data());
  std::fprintf(stderr, "moonpool up: %s cannot be started (%s): install Python 3.11 or newer, or run ./moonpool up in a checkout\n",
               interpreter.c_str(), std::strerror(errno));
  return 1;
}

int run_bench(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "transfer") == 0) return moonpool::transfer::run_transfer_engine_bench(argc - 1, argv + 1);
  std::fprintf(stderr, "usage: moonpool bench transfer [options]\n");
  return 2;
}

const std::vector<moonpool::cli::Command>& commands() {
  static const std::vector<moonpool::cli::Command> kCommands = {
      {"master", "mooncake_master", "the pool's master", moonpool::master::run_master},
      {"node", "mooncake_client", "a standalone node that lends memory to the pool", moonpool::store::run_node},
      {"gateway", "", "the HTTP front before prefill and decode instances", moonpool::gateway::run_gateway},
      {"metadata", "mooncake_http_metadata_server", "an HTTP metadata server", moonpool::metadata::run_http_metadata_server},
      {"up", "", "from a bare machine to an answer: the whole, with vLLM", run_up},
      {"status", "", "what a running master says of itself", moonpool::cli::run_status},
      {"doctor", "", "what is wrong with this host and what it can reach, and what to do about it", moonpool::cli::run_doctor},
      {"bench", "", "benchmarks: bench transfer", run_bench},
      {"bench-transfer", "transfer_engine_bench", "moves bytes between two processes and says how fast",
       moonpool::transfer::run_transfer_engine_bench},
  };
  return kCommands;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return moonpool::cli::dispatch(commands(), MOONPOOL_VERSION, argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "moonpool: %s\n", error.what());
    return 1;
  }
}
