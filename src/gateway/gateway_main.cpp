#include "gateway/gateway_main.h"

#include <sys/stat.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
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

// Reads the configuration again when its file changes or SIGHUP comes. A file that cannot be used changes nothing.
class ConfigWatcher {
 public:
  ConfigWatcher(boost::asio::io_context& context, int argc, char** argv, const Settings& settings)
      : argc_(argc), argv_(argv), file_(settings.config_file), keys_file_(settings.keys_file), hangup_(context, SIGHUP), timer_(context) {
    seen_ = look(file_);
    keys_seen_ = look(keys_file_);
  }

  void start(Gateway& gateway) {
    gateway_ = &gateway;
    wait_for_hangup();
    if (!file_.empty() || !keys_file_.empty()) wait_for_change();
  }
  void stop() {
    hangup_.cancel();
    timer_.cancel();
  }

 private:
  // What tells one state of the file from the next: editors replace it, others write into it.
  struct Look {
    bool there = false;
    dev_t device = 0;
    ino_t inode = 0;
    off_t size = 0;
    std::int64_t modified_ns = 0;
    friend bool operator==(const Look&, const Look&) = default;
  };

  [[nodiscard]] static Look look(const std::string& file) {
    struct ::stat now {};
    if (file.empty() || ::stat(file.c_str(), &now) != 0) return {};
    return {true, now.st_dev, now.st_ino, now.st_size, std::int64_t{now.st_mtim.tv_sec} * 1'000'000'000 + now.st_mtim.tv_nsec};
  }

  void wait_for_hangup() {
    hangup_.async_wait([this](const boost::system::error_code& error, int) {
      if (error) return;
      log::info("SIGHUP: reading the configuration again");
      reload();
      wait_for_hangup();
    });
  }

  void wait_for_change() {
    timer_.expires_after(std::chrono::milliseconds(500));
    timer_.async_wait([this](const boost::system::error_code& error) {
      if (error) return;
      const bool changed = has_changed(file_, seen_);
      const bool keys_changed = has_changed(keys_file_, keys_seen_);
      if (changed || keys_changed) reload();
      wait_for_change();
    });
  }

  static bool has_changed(const std::string& file, const Look& seen) {
    const Look now = look(file);
    if (!now.there || now == seen) return false;
    log::info("{} has changed: reading it again", file);
    return true;
  }

  void reload() {
    seen_ = look(file_);
    keys_seen_ = look(keys_file_);
    auto parsed = parse_command_line(argc_, argv_);
    if (!parsed.ok() || !parsed->settings) {
      log::error("the configuration stays as it was: {}", parsed.ok() ? "" : parsed.status().message());
      return;
    }
    if (parsed->settings->keys_file != keys_file_) {
      keys_file_ = parsed->settings->keys_file;
      keys_seen_ = look(keys_file_);
    }
    gateway_->reload(std::move(*parsed->settings));
    log::info("the configuration was read again");
  }

  const int argc_;
  char** const argv_;
  const std::string file_;
  std::string keys_file_;  // as the configuration says it now
  boost::asio::signal_set hangup_;
  boost::asio::steady_timer timer_;
  Look seen_;
  Look keys_seen_;
  Gateway* gateway_ = nullptr;
};

int serve(Settings settings, int argc, char** argv) {
  log::configure("gateway", settings.log_level);
  // Before any thread exists, so that a signal during the start is not lost.
  boost::asio::io_context context;
  boost::asio::signal_set signals(context, SIGTERM, SIGINT);
  std::signal(SIGPIPE, SIG_IGN);
  ConfigWatcher watcher(context, argc, argv, settings);

  auto gateway = Gateway::start(std::move(settings));
  if (!gateway.ok()) {
    log::error("{}", gateway.status().message());
    return 1;
  }
  watcher.start(**gateway);
  std::thread stopper;
  bool drained = true;
  signals.async_wait([&](const boost::system::error_code& error, int number) {
    if (error) return;
    log::info("signal {}: stopping; running requests are finished first, a second signal ends them", number);
    signals.async_wait([](const boost::system::error_code& again, int) {
      if (!again) std::_Exit(1);
    });
    watcher.stop();
    stopper = std::thread([&] {
      drained = (*gateway)->stop();
      context.stop();
    });
  });
  context.run();
  stopper.join();
  log::info("{}", drained ? "stopped" : "stopped; requests that did not end in time were cut");
  return drained ? 0 : 1;
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
    return serve(std::move(*parsed->settings), argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "moonpool gateway: unexpected error: %s\n", error.what());
    return 1;
  }
}

}  // namespace moonpool::gateway
