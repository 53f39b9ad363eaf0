#include <csignal>
#include <cstdio>
#include <string>
#include <vector>

#include <pthread.h>

#include "base/logging.h"
#include "master/flags.h"
#include "master/master.h"

namespace moonpool::master {

namespace {
bool loopback(const std::string& host) { return host == "localhost" || host == "::1" || host.starts_with("127."); }

void log_start(const MasterConfig& config, const Master& master) {
  log::info("serving on {}:{}, pages on http://{}:{}/status, cluster {}{}", config.host, master.port(), config.metrics_host,
            master.metrics_port(), config.cluster_id, config.cluster_token.empty() ? "" : ", with a cluster token");
  if (master.metadata_port() != 0) {
    log::info("metadata server on http://{}:{}/metadata", config.http_metadata_server_host, master.metadata_port());
  }
  if (loopback(config.host)) {
    log::info("only this machine can reach it; to listen elsewhere give --rpc_address with this machine's address, or 0.0.0.0 for all");
  }
}
}  // namespace

int run_master(int argc, char** argv) {
  log::configure("master");
  const std::vector<std::string> arguments(argv + (argc > 0 ? 1 : 0), argv + argc);
  const auto parsed = parse_flags(arguments, FlagSources::real());
  if (!parsed.ok()) {
    log::error("{}", parsed.status().message());
    return 1;
  }
  if (parsed->help) {
    std::fputs(flags_help().c_str(), stdout);
    return 0;
  }
  log::configure("master", parsed->config.log_level);
  for (const auto& warning : parsed->warnings) log::warning("{}", warning);

  // Blocked before any thread exists, so that all threads inherit it and sigwait below gets them.
  sigset_t stops;
  sigemptyset(&stops);
  sigaddset(&stops, SIGINT);
  sigaddset(&stops, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &stops, nullptr);
  std::signal(SIGPIPE, SIG_IGN);

  auto master = Master::start(parsed->config);
  if (!master.ok()) {
    log::error("cannot start: {}", master.status().message());
    return 1;
  }
  log_start(parsed->config, **master);
  int received = 0;
  sigwait(&stops, &received);
  log::info("signal {}: stopping", received);
  (*master)->stop();
  return 0;
}

}  // namespace moonpool::master
