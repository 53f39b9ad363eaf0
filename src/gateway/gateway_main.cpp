#include "gateway/gateway_main.h"

#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thread>

#include "base/logging.h"
#include "gateway/gateway.h"
#include "gateway/settings.h"

namespace moonpool::gateway {

namespace {

int serve(Settings settings) {
  log::configure("gateway", settings.log_level);
  // Before any thread exists, so that a signal during the start is not lost.
  boost::asio::io_context context;
  boost::asio::signal_set signals(context, SIGTERM, SIGINT);
  std::signal(SIGPIPE, SIG_IGN);

  auto gateway = Gateway::start(std::move(settings));
  if (!gateway.ok()) {
    log::error("{}", gateway.status().message());
    return 1;
  }
  std::thread stopper;
  signals.async_wait([&](const boost::system::error_code& error, int number) {
    if (error) return;
    log::info("signal {}: stopping; running requests are finished first, a second signal ends them", number);
    signals.async_wait([](const boost::system::error_code& again, int) {
      if (!again) std::_Exit(1);
    });
    stopper = std::thread([&] {
      (*gateway)->stop();
      context.stop();
    });
  });
  context.run();
  stopper.join();
  log::info("stopped");
  return 0;
}

}  // namespace

int run_gateway(int argc, char** argv) {
  try {
    auto parsed = parse_command_line(argc, argv);
    if (!parsed.ok()) {
      std::fprintf(stderr, "moonpool gateway: %s\n", parsed.status().message().c_str());
      return 2;
    }
    if (!parsed->settings) {
      std::fputs(parsed->help.c_str(), stdout);
      return 0;
    }
    return serve(std::move(*parsed->settings));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "moonpool gateway: unexpected error: %s\n", error.what());
    return 1;
  }
}

}  // namespace moonpool::gateway
