#include "base/logging.h"

#include <spdlog/sinks/stdout_sinks.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace moonpool::log {

namespace {
constexpr auto kPattern = "%Y-%m-%d %H:%M:%S.%e %L [%n] %v";

// Loggers are never freed: a thread that outlives main's statics may still hold one, and configure() is called a few times at most.
// They stay reachable from here, so that LeakSanitizer does not count a replaced one.
spdlog::logger* make(std::string name) {
  static std::mutex mutex;  // guards kept
  static auto* const kept = new std::vector<std::unique_ptr<spdlog::logger>>;
  auto logger = std::make_unique<spdlog::logger>(std::move(name), std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern(kPattern);
  logger->set_level(spdlog::level::warn);
  logger->flush_on(spdlog::level::trace);
  const std::lock_guard lock(mutex);
  return kept->emplace_back(std::move(logger)).get();
}

std::atomic<spdlog::logger*>& slot() {
  static std::atomic<spdlog::logger*> current{make("moonpool")};
  return current;
}
}  // namespace

void configure(std::string_view component, std::string_view level) {
  std::string wanted(level);
  if (wanted.empty()) {
    const char* from_environment = std::getenv("MOONPOOL_LOG_LEVEL");
    wanted = from_environment != nullptr ? from_environment : "info";
  }
  if (wanted == "warn") wanted = "warning";
  const auto parsed = spdlog::level::from_str(wanted);
  const bool known = parsed != spdlog::level::off || wanted == "off";
  auto* const next = make(std::string(component));
  next->set_level(known ? parsed : spdlog::level::info);
  slot().store(next);
  if (!known) warning("unknown log level '{}': using info; levels are trace, debug, info, warning, error, off", wanted);
}

spdlog::logger& logger() { return *slot().load(); }

}  // namespace moonpool::log
