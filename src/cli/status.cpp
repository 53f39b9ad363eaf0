#include "cli/status.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <boost/json.hpp>
#include <chrono>
#include <cmath>

#include "base/deadline.h"
#include "net/http_client.h"

namespace moonpool::cli {

namespace json = boost::json;

namespace {

constexpr int kDeepest = 32;

std::string in_units(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  std::size_t unit = 0;
  while (std::abs(bytes) >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : 2, kUnits[unit]);
}

// Control characters of a peer do not reach the terminal.
std::string printable(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  }
  return result;
}

std::string scalar(std::string_view name, const json::value& value) {
  if (value.is_string()) return printable(value.get_string());
  if (value.is_bool()) return value.get_bool() ? "yes" : "no";
  if (value.is_null()) return "-";
  std::string text = value.is_double() ? fmt::format("{:.6g}", value.get_double()) : json::serialize(value);
  if (name.ends_with("_bytes")) text += fmt::format("  ({})", in_units(value.to_number<double>()));
  return text;
}

void append(std::string& text, std::string_view name, const json::value& value, int depth) {
  const std::string indent(static_cast<std::size_t>(depth) * 2, ' ');
  const bool nested = value.is_object() || value.is_array();
  if (!nested) {
    text += fmt::format("{}{}: {}\n", indent, printable(name), scalar(name, value));
    return;
  }
  const std::size_t count = value.is_object() ? value.get_object().size() : value.get_array().size();
  if (count == 0 || depth >= kDeepest) {
    text += fmt::format("{}{}: {}\n", indent, printable(name), count == 0 ? "none" : "...");
    return;
  }
  text += fmt::format("{}{}{}\n", indent, printable(name), value.is_array() ? fmt::format(" ({})", count) : "");
  if (value.is_object()) {
    for (const auto& [key, inner] : value.get_object()) append(text, key, inner, depth + 1);
    return;
  }
  std::size_t number = 0;
  for (const json::value& inner : value.get_array()) append(text, fmt::format("{}", ++number), inner, depth + 1);
}

}  // namespace

Result<std::string> format_status(std::string_view text) {
  boost::system::error_code error;
  const json::value document = json::parse(text, error);
  if (error || !document.is_object()) {
    return Status(ErrorCode::kProtocol, "the answer is not a JSON object: is this the admin port (metrics_port) of a moonpool master?");
  }
  std::string result;
  for (const auto& [name, value] : document.get_object()) append(result, name, value, 0);
  return result;
}

int run_status(int argc, char** argv) {
  std::string master = "127.0.0.1:9003";
  double timeout = 3;
  bool as_json = false;
  CLI::App app("Shows the state of a running master.", argc > 0 ? argv[0] : "moonpool status");
  app.add_option("master,--master", master, "host:port of its admin port (metrics_port)")->capture_default_str();
  app.add_option("--timeout", timeout, "seconds to wait")->capture_default_str()->check(CLI::Range(0.01, 3600.0));
  app.add_flag("--json", as_json, "the document as it is");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  net::HttpClient client;
  const auto budget = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(timeout));
  const auto response = client.get(fmt::format("http://{}/status", master), Deadline::after(budget));
  if (!response.ok()) {
    fmt::print(stderr, "moonpool status: {}\nwhat to do: start the master, or name its admin port with --master host:port\n",
               response.status().to_string());
    return 1;
  }
  if (response->status != 200) {
    fmt::print(stderr, "moonpool status: {} answered HTTP {} for /status: is this the admin port (metrics_port) of a moonpool master?\n",
               master, response->status);
    return 1;
  }
  if (as_json) {
    fmt::print("{}\n", response->body);
    return 0;
  }
  const auto text = format_status(response->body);
  if (!text.ok()) {
    fmt::print(stderr, "moonpool status: {}: {}\n", master, text.status().message());
    return 1;
  }
  fmt::print("{}", *text);
  return 0;
}

}  // namespace moonpool::cli
