#include "metadata/http_metadata_server.h"

#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <iostream>
#include <string>
#include <vector>

#include "base/logging.h"
#include "metadata/embedded_store.h"
#include "metadata/metadata_http_service.h"
#include "net/endpoint.h"
#include "net/http_server.h"

namespace moonpool::metadata {

namespace {

// gflags takes "-port 1" for "--port 1"; CLI11 does not. In reverse order, as CLI11 wants it.
std::vector<std::string> two_dashes(int argc, char** argv) {
  std::vector<std::string> arguments;
  for (int i = argc - 1; i > 0; --i) {
    std::string argument(argv[i]);
    const bool one_dash = argument.size() > 2 && argument[0] == '-' && std::isalpha(static_cast<unsigned char>(argument[1])) != 0;
    arguments.push_back(one_dash ? "-" + argument : argument);
  }
  return arguments;
}

int serve(const net::HttpServerOptions& options) {
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGINT);
  sigaddset(&ends, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &ends, nullptr);  // inherited by the server's threads

  EmbeddedStore store;
  const auto server = net::HttpServer::start(options, MetadataHttpService(store));
  if (!server) {
    std::cerr << "error: " << server.status().message() << "\n";
    return 1;
  }
  const auto host = net::Endpoint{options.host, (*server)->port()}.to_string();
  std::cout << "metadata server: http://" << host << "/metadata" << std::endl;
  int number = 0;
  ::sigwait(&ends, &number);
  (*server)->stop();
  return 0;
}

}  // namespace

int run_http_metadata_server(int argc, char** argv) {
  log::configure("metadata");
  net::HttpServerOptions options;
  options.port = 8080;
  CLI::App app("Keeps the metadata of a Moonpool or Mooncake cluster and serves it over HTTP.", "mooncake_http_metadata_server");
  app.add_option("--host", options.host, "Address or name to listen on; 0.0.0.0 for all IPv4 addresses")->capture_default_str();
  app.add_option("--port", options.port, "TCP port; 0 lets the system choose")->capture_default_str();
  try {
    app.parse(two_dashes(argc, argv));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return serve(options);
}

}  // namespace moonpool::metadata
