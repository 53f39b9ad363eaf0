// One logging setup for every process: spdlog to standard error, one line an event, the component's name in brackets.
//
// Level from the process's own --log-level (or MOONPOOL_LOG_LEVEL, read once here); never a secret in a line: tokens and API
// keys are not passed to these functions. Threads: all functions may be called from any thread.
#pragma once

#include <spdlog/spdlog.h>

#include <string_view>

namespace moonpool::log {

// Sets level and format for the process. `component` is shown in every line: "master", "node", "gateway", "store".
// Unknown levels fall back to "info" with a warning. May be called again; the last call wins.
void configure(std::string_view component, std::string_view level = {});

// The process's logger. Usable before configure() (level "warning", component "moonpool": a library keeps quiet).
spdlog::logger& logger();

template <typename... Args>
void debug(spdlog::format_string_t<Args...> format, Args&&... args) { logger().debug(format, std::forward<Args>(args)...); }
template <typename... Args>
void info(spdlog::format_string_t<Args...> format, Args&&... args) { logger().info(format, std::forward<Args>(args)...); }
template <typename... Args>
void warning(spdlog::format_string_t<Args...> format, Args&&... args) { logger().warn(format, std::forward<Args>(args)...); }
template <typename... Args>
void error(spdlog::format_string_t<Args...> format, Args&&... args) { logger().error(format, std::forward<Args>(args)...); }

}  // namespace moonpool::log
