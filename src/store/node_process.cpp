#include "store/node_process.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/logging.h"
#include "store/client.h"
#include "store/node_flags.h"
#include "transfer/rdma/settings.h"

namespace moonpool::store {

namespace {

Result<std::string> read_token(const std::string& path) {
  std::ifstream file(path);
  std::string token;
  if (!file || !std::getline(file, token)) {
    return {ErrorCode::kFileOpenFail,
            fmt::format("--cluster_token_file: {} cannot be read or is empty; its first line is the token", path)};
  }
  while (!token.empty() && (token.back() == '\r' || token.back() == ' ')) token.pop_back();
  return token;
}

int serve(NodeSettings settings, const sigset_t& ends) {
  if (!settings.token_file.empty()) {
    auto token = read_token(settings.token_file);
    if (!token) {
      log::error("{}", token.status().message());
      return 1;
    }
    settings.client.cluster_token = std::move(*token);
  } else if (const char* token = std::getenv("MOONPOOL_CLUSTER_TOKEN")) {  // as the master takes it; read once, here
    settings.client.cluster_token = token;
  }
  if (settings.client.protocol == "rdma") {
    auto rdma = transfer::rdma::with_variables(std::move(settings.client.rdma), transfer::rdma::variables_of(environ));
    if (!rdma) {
      log::error("{}", rdma.status().message());
      return 1;
    }
    settings.client.rdma = std::move(*rdma);
  }
  auto client = Client::create(settings.client);
  if (!client) {
    log::error("the node cannot start: {}", client.status().to_string());
    return 1;
  }
  const auto& options = settings.client;
  log::info(
      "node {} lends {:.2f} GiB to the pool of the master at {}; --host <address> makes it reachable from other machines, SIGTERM ends it",
      (*client)->hostname(), static_cast<double>(options.segment_size) / (1ULL << 30), options.master_address);
  int number = 0;
  while (::sigwait(&ends, &number) != 0) {
  }
  log::info("signal {}: leaving the pool", number);
  (*client)->close();
  return 0;
}

}  // namespace

int run_node(int argc, char** argv) {
  // Before there is a thread that could inherit them unblocked.
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGINT);
  sigaddset(&ends, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &ends, nullptr);

  const std::vector<std::string_view> arguments(argv + std::min(argc, 1), argv + argc);
  auto settings = parse_node_flags(arguments);
  if (!settings) {
    std::fprintf(stderr, "%s\n", settings.status().message().c_str());
    return 2;
  }
  if (settings->help) {
    std::fputs(node_flags_help().c_str(), stdout);
    return 0;
  }
  log::configure("node", settings->log_level);
  for (const auto& warning : settings->warnings) log::warning("{}", warning);
  return serve(std::move(*settings), ends);
}

}  // namespace moonpool::store
