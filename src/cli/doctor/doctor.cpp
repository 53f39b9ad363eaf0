#include "cli/doctor/doctor.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "base/version.h"
#include "cli/doctor/memory_checks.h"
#include "cli/doctor/metadata_check.h"
#include "cli/doctor/name_checks.h"
#include "cli/doctor/port_checks.h"
#include "cli/doctor/rdma_checks.h"
#include "cli/doctor/server_checks.h"
#include "cli/doctor/software_checks.h"
#include "metadata/metadata_url.h"
#include "store/node_address.h"
#include "transfer/rdma/options.h"

namespace moonpool::cli::doctor {

namespace {

bool is_literal(const std::string& host) {
  in6_addr ignored{};
  return ::inet_pton(AF_INET, host.c_str(), &ignored) == 1 || ::inet_pton(AF_INET6, host.c_str(), &ignored) == 1;
}

// What RDMA would register: the segment, the local buffer, and staging for memory that nobody registered.
std::uint64_t registered_bytes(const Settings& settings) {
  if (!settings.wants_rdma()) return 0;
  return settings.config->segment_bytes + settings.config->local_buffer_bytes + transfer::rdma::Options().staging_bytes;
}

struct ServerHost {
  std::string whose;
  std::string host;
};
// The hosts of master and metadata servers, each once.
std::vector<ServerHost> server_hosts(const Settings& settings) {
  std::vector<ServerHost> hosts;
  const auto add = [&](const char* whose, const std::string& host) {
    const auto same = [&](const ServerHost& one) { return one.host == host; };
    if (std::none_of(hosts.begin(), hosts.end(), same)) hosts.push_back({whose, host});
  };
  for (const std::string& master : settings.masters()) {
    if (const auto endpoint = net::Endpoint::parse(master, 50051)) add("master", endpoint->host);
  }
  if (const auto url = metadata::parse_metadata_url(settings.metadata_server())) {
    for (const net::Endpoint& endpoint : url->endpoints) add("metadata server", endpoint.host);
  }
  return hosts;
}

Findings check_names(const Settings& settings, Deadline deadline) {
  Findings found;
  bool elsewhere = false;
  const auto append = [&](Findings more) { std::move(more.begin(), more.end(), std::back_inserter(found)); };
  for (const ServerHost& server : server_hosts(settings)) {
    const auto resolved = resolve_name(server.host, deadline);
    if (resolved && !resolved->only_loopback()) {
      // One of this host's own addresses is not elsewhere.
      elsewhere = elsewhere || !store::check_is_ours({server.host, 0}, deadline).ok();
    }
    // Of an address there is nothing to say.
    if (!is_literal(server.host)) append(judge_server_name(server.whose, server.host, resolved));
  }
  const std::string own = own_name();
  if (settings.config) {
    const auto address = store::parse_node_address(settings.config->local_hostname);
    if (!address) {
      append({error(address.status().message(), "put this host's own address into local_hostname")});
    } else {
      const auto resolved = resolve_name(address->host, deadline);
      const Status ours = resolved ? store::check_is_ours(*address, deadline) : Status();
      append(judge_local_hostname(address->host, resolved, ours, elsewhere));
    }
  }
  append(judge_own_name(own, resolve_name(own, deadline)));
  return found;
}

std::vector<WantedPort> wanted_ports(const Settings& settings, Deadline deadline) {
  std::vector<WantedPort> wanted;
  for (const std::uint16_t port : settings.request.ports) wanted.push_back({"--port", port, "", false, ""});
  const auto address =
      settings.config ? store::parse_node_address(settings.config->local_hostname) : Result<store::NodeAddress>(store::NodeAddress());
  if (settings.config && address && address->port != 0) {
    // A node that is up already has every right to its port.
    const Greeting greeting = greet({address->host, address->port}, settings.token, deadline.sooner(deadline.left() / 2));
    wanted.push_back({"local_hostname", address->port, is_literal(address->host) ? address->host : "", false, greeting.product});
  }
  if (settings.config && settings.config->client_http_port != 0)
    wanted.push_back({"client_http_port", settings.config->client_http_port, "", false, ""});
  for (const std::string& master : settings.masters()) {
    const auto endpoint = net::Endpoint::parse(master, 50051);
    if (endpoint && (is_loopback(endpoint->host) || endpoint->host == "localhost"))
      wanted.push_back({"master", endpoint->port, is_literal(endpoint->host) ? endpoint->host : "", true, ""});
  }
  return wanted;
}

Findings check_masters(const Settings& settings, Deadline deadline) {
  const auto masters = settings.masters();
  Findings found;
  bool any = masters.empty();
  for (std::size_t i = 0; i < masters.size(); ++i) {
    const Deadline bound = deadline.sooner(deadline.left() / static_cast<std::int64_t>(masters.size() - i));
    Findings one = check_master(masters[i], settings.token, masters.size() == 1, bound);
    any = any || masters.size() == 1 || std::none_of(one.begin(), one.end(), [](const Finding& f) { return f.level == Level::kWarning; });
    std::move(one.begin(), one.end(), std::back_inserter(found));
  }
  if (!any) found.push_back(error("none of the masters can be used", "mend one of them, as said above"));
  return found;
}

Findings check_python(const Settings& settings, Deadline deadline) {
  std::error_code ignored;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", ignored).string();
  const std::string interpreter = choose_python(settings.environment.python, settings.environment.virtual_environment, program);
  const auto text = ask_python(interpreter, deadline);
  const auto facts = text ? parse_python_facts(*text) : Result<PythonFacts>(text.status());
  Findings found;
  if (!facts) {
    found.push_back(warning(fmt::format("Python: {}: {}", interpreter, facts.status().message()),
                            "activate the environment that the engines use (VIRTUAL_ENV names it), then run this again"));
  } else {
    found = judge_python(*facts, version());
  }
  const Findings seed = judge_hash_seed(settings.environment.hash_seed, facts && !facts->vllm.empty());
  found.insert(found.end(), seed.begin(), seed.end());
  return found;
}

}  // namespace

Findings check_configuration(const Settings& settings) {
  Findings found;
  if (!settings.config_error.ok()) {
    found.push_back(error(settings.config_error.message(), "mend it; the engines refuse it too. What depends on it is not checked here"));
  } else if (!settings.config) {
    found.push_back(note("no configuration: the host alone is looked at, and what flags name",
                         "name the engines' mooncake.json with --config or MOONCAKE_CONFIG_PATH"));
  } else {
    const PoolConfig& config = *settings.config;
    found.push_back(
        ok(fmt::format("{}: protocol {}{}, segment {}, local buffer {}", config.source, config.protocol,
                       config.device_name.empty() ? "" : ", devices " + config.device_name,
                       in_units(static_cast<double>(config.segment_bytes)), in_units(static_cast<double>(config.local_buffer_bytes)))));
    if (config.protocol != "tcp" && config.protocol != "rdma")
      found.push_back(
          error(fmt::format("protocol \"{}\": this release speaks tcp and rdma", config.protocol), "set \"protocol\" to one of them"));
    for (const std::string& field : config.unknown_fields)
      found.push_back(
          warning(fmt::format("{}: unknown field \"{}\" has no effect", config.source, field), "mend its name, or take it out"));
  }
  if (!settings.token_error.ok()) found.push_back(error(settings.token_error.message(), "name a file that this user can read"));
  if (const auto options = transfer::rdma::with_variables({}, settings.environment.rdma); !options.ok())
    found.push_back(
        error(options.status().message(), "mend the variable or unset it: engines with protocol rdma refuse to start (docs/rdma.md)"));
  return found;
}

std::vector<Check> make_checks(std::shared_ptr<const Settings> settings, HostFiles host) {
  const Settings& s = *settings;
  const std::uint64_t segment = s.config ? s.config->segment_bytes : 0;
  std::vector<Check> checks;
  // Every check holds the settings: it may outlive the caller's patience.
  const auto add = [&](std::string name, std::function<Findings(const Settings&, const HostFiles&, Deadline)> run) {
    checks.push_back(
        {std::move(name), [settings, host, run = std::move(run)](Deadline deadline) { return run(*settings, host, deadline); }});
  };
  add("config", [](const Settings& all, const HostFiles&, Deadline) { return check_configuration(all); });
  add("versions", [](const Settings&, const HostFiles&, Deadline) { return check_versions(); });
  add("python", [](const Settings& all, const HostFiles&, Deadline deadline) { return check_python(all, deadline); });
  add("libraries", [](const Settings& all, const HostFiles&, Deadline) {
    return judge_libraries(open_library("libibverbs.so.1"), open_library("librdmacm.so.1"), open_library("libcuda.so.1"), all.wants_rdma());
  });
  add("rdma", [](const Settings& all, const HostFiles& files, Deadline) {
    return check_rdma_ports(read_rdma_ports(files), read_pci_devices(files), {all.wants_rdma(), all.devices()});
  });
  add("gpu", [](const Settings&, const HostFiles& files, Deadline) { return check_gpus(read_pci_devices(files), read_rdma_ports(files)); });
  add("memory lock", [](const Settings& all, const HostFiles& files, Deadline) {
    return check_memory_lock(read_memory_lock(files), registered_bytes(all));
  });
  add("huge pages", [segment](const Settings& all, const HostFiles& files, Deadline) {
    return check_huge_pages(read_huge_pages(files), all.wants_rdma() ? segment : 0);
  });
  add("numa", [segment](const Settings&, const HostFiles& files, Deadline) { return check_numa(read_numa_nodes(files), segment); });
  add("shared memory", [](const Settings&, const HostFiles&, Deadline) { return check_shared_memory(read_shared_memory()); });
  add("files", [](const Settings&, const HostFiles&, Deadline) { return check_file_limit(read_file_limit()); });
  add("ports", [](const Settings& all, const HostFiles& files, Deadline deadline) {
    return check_ports(read_listeners(files), wanted_ports(all, deadline), {store::kFirstNodePort, store::kLastNodePort},
                       read_outgoing_ports(files));
  });
  add("names", [](const Settings& all, const HostFiles&, Deadline deadline) { return check_names(all, deadline); });
  if (!s.masters().empty())
    add("master", [](const Settings& all, const HostFiles&, Deadline deadline) { return check_masters(all, deadline); });
  if (!s.metadata_server().empty()) {
    add("metadata",
        [](const Settings& all, const HostFiles&, Deadline deadline) { return check_metadata_server(all.metadata_server(), deadline); });
  }
  for (const std::string& peer : s.request.peers) {
    add("peer", [peer](const Settings& all, const HostFiles&, Deadline deadline) {
      return check_peer(peer, all.token, all.wants_rdma(), deadline);
    });
  }
  return checks;
}

}  // namespace moonpool::cli::doctor

namespace moonpool::cli {

int run_doctor(int argc, char** argv) {
  doctor::Request request;
  double timeout = 10;
  CLI::App app("Looks at this host, its configuration and what it can reach of the pool, and says what is wrong and what to do about it.",
               argc > 0 ? argv[0] : "moonpool doctor");
  app.add_option("--config", request.config_path, "the engines' mooncake.json (else the one that MOONCAKE_CONFIG_PATH names)");
  app.add_option("--master", request.master, "host:port of the master, several with commas (else the configuration's)");
  app.add_option("--metadata-server", request.metadata_server, "etcd://h:p, redis://h:p or http://h:p/metadata (else the configuration's)");
  app.add_option("--peer", request.peers, "host:port of another node: is it there, in which version, and by which path; may be repeated");
  app.add_option("--port", request.ports, "a port that something is going to listen on; may be repeated");
  app.add_option("--timeout", timeout, "seconds after which all of it has ended")->capture_default_str()->check(CLI::Range(0.1, 600.0));
  app.add_flag("--json", request.as_json, "one JSON object for machines");
  app.footer(
      "\nLooks at: the configuration, versions of the software, RDMA devices and GPUs, limits and huge pages, NUMA nodes, ports and names, "
      "the\n"
      "master, the metadata server and the peers. The only thing it writes is a key of its own at the metadata server, which it removes.\n"
      "Exit status: 0 without errors (warnings are none), 1 with, 2 for a wrong command line.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  request.timeout = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(timeout));
  const auto started = Deadline::Clock::now();
  const Deadline deadline = Deadline::after(request.timeout);
  const bool as_json = request.as_json;
  const auto settings = std::make_shared<const doctor::Settings>(doctor::gather(std::move(request), doctor::Environment::read()));
  const auto outcome = doctor::run_checks(doctor::make_checks(settings, doctor::HostFiles()), deadline);
  if (as_json) {
    fmt::print("{}\n", doctor::as_json(outcome.sections, Deadline::Clock::now() - started));
  } else {
    const auto& environment = settings->environment;
    const bool colour = ::isatty(STDOUT_FILENO) == 1 && environment.no_color.value_or("").empty() && environment.terminal != "dumb";
    fmt::print("{}", doctor::as_text(outcome.sections, colour));
  }
  std::fflush(stdout);
  const int status = doctor::gravest(outcome.sections) == doctor::Level::kError ? 1 : 0;
  // A check that hangs would hang the end of the process too.
  if (!outcome.all_ended) std::_Exit(status);
  return status;
}

}  // namespace moonpool::cli
