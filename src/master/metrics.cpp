#include "master/metrics.h"

#include <fmt/format.h>
#include <boost/json.hpp>

namespace moonpool::master {

namespace {

struct SpaceTotals {
  std::uint64_t segments = 0;
  std::uint64_t capacity = 0;
  std::uint64_t used = 0;
  std::uint64_t quarantine = 0;
};

SpaceTotals space_totals(const Segments& segments) {
  SpaceTotals totals;
  for (const auto& segment : segments) {
    ++totals.segments;
    totals.capacity += segment->capacity();
    totals.used += segment->used();
    totals.quarantine += segment->quarantine();
  }
  return totals;
}

class PrometheusWriter {
 public:
  void value(const char* kind, const std::string& name, const std::string& help, std::uint64_t value) {
    text_ +=
        fmt::format("# HELP moonpool_master_{0} {1}\n# TYPE moonpool_master_{0} {2}\nmoonpool_master_{0} {3}\n", name, help, kind, value);
  }
  void gauge(const std::string& name, const std::string& help, std::uint64_t v) { value("gauge", name, help, v); }
  void counter(const std::string& name, const std::string& help, const Counter& v) { value("counter", name + "_total", help, v.load()); }
  void append(std::string text) { text_ += text; }
  [[nodiscard]] std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

void write_counters(PrometheusWriter& out, const Counters& c) {
  out.counter("put_started", "Puts granted", c.put_started);
  out.counter("put_committed", "Puts committed", c.put_committed);
  out.counter("put_revoked", "Puts revoked by their writer", c.put_revoked);
  out.counter("put_abandoned", "Puts ended by time-out, or with their writer or segment", c.put_abandoned);
  out.counter("put_exists", "Puts of a key that was there", c.put_exists);
  out.counter("put_busy", "Puts of a key that another put was writing", c.put_busy);
  out.counter("put_no_space", "Puts refused for lack of space", c.put_no_space);
  out.counter("put_waited_for_space", "Put batches that waited for evicted space", c.put_waited_for_space);
  out.counter("lookup_keys", "Keys asked for by exist", c.lookups);
  out.counter("lookup_hits", "Keys found by exist", c.lookup_hits);
  out.counter("get_keys", "Keys asked for by get", c.gets);
  out.counter("get_hits", "Keys found by get", c.get_hits);
  out.counter("removed", "Objects removed", c.removed);
  out.counter("remove_timeouts", "Removes whose owners did not acknowledge in time", c.remove_timeouts);
  out.counter("evicted_objects", "Objects evicted", c.evicted_objects);
  out.counter("evicted_bytes", "Bytes evicted", c.evicted_bytes);
  out.counter("nodes_registered", "Registrations of nodes", c.nodes_registered);
  out.counter("nodes_lost", "Nodes whose connection ended without a good-bye", c.nodes_lost);
  out.counter("nodes_expired", "Nodes that were silent for too long", c.nodes_expired);
  out.counter("segments_mounted", "Segments mounted", c.segments_mounted);
  out.counter("extents_restored", "Extents taken over from owners' catalogues", c.extents_restored);
  out.counter("extents_rejected", "Reported extents that were not wanted", c.extents_rejected);
  out.counter("retirements_acknowledged", "Retirements acknowledged by owners", c.retirements_acknowledged);
  out.counter("reigns", "Reigns of this process", c.reigns);
}

void write_handover(PrometheusWriter& out, const Handover& handover) {
  const auto& c = handover.counters;
  out.counter("handover_waits", "Look-ups that waited for keys on their way", c.waits);
  out.counter("handover_satisfied", "Waits after which every key was there", c.satisfied);
  out.counter("handover_timed_out", "Waits that ended without every key", c.timed_out);
  out.gauge("handover_expected_keys", "Keys that some node is expected to put", handover.size());
  std::string text = "# HELP moonpool_master_handover_wait_ms Time waited by look-ups\n# TYPE moonpool_master_handover_wait_ms histogram\n";
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < c.buckets.size(); ++i) {
    sum += c.buckets[i];
    const auto bound = i < Handover::kBucketMs.size() ? std::to_string(Handover::kBucketMs[i]) : std::string("+Inf");
    text += fmt::format("moonpool_master_handover_wait_ms_bucket{{le=\"{}\"}} {}\n", bound, sum);
  }
  text += fmt::format("moonpool_master_handover_wait_ms_sum {}\nmoonpool_master_handover_wait_ms_count {}\n", c.waited_ms.load(), sum);
  out.append(std::move(text));
}

}  // namespace

std::string prometheus_text(Coordinator& coordinator) {
  PrometheusWriter out;
  const auto totals = coordinator.table().totals();
  const auto space = space_totals(*coordinator.membership().segments());
  std::uint64_t orders = 0;
  const auto nodes = coordinator.membership().nodes();
  for (const auto& node : nodes) orders += node->outbox->outstanding();
  out.gauge("term", "The reign's term", coordinator.term().value);
  out.gauge("nodes", "Registered nodes", nodes.size());
  out.gauge("segments", "Mounted segments", space.segments);
  out.gauge("capacity_bytes", "Bytes of all segments", space.capacity);
  out.gauge("used_bytes", "Bytes in use, including quarantine", space.used);
  out.gauge("quarantine_bytes", "Bytes retired and not yet acknowledged by their owners", space.quarantine);
  out.gauge("retirements_outstanding", "Retirements not yet acknowledged", orders);
  out.gauge("objects", "Committed objects", totals.objects);
  out.gauge("object_bytes", "Bytes of committed objects", totals.bytes);
  out.gauge("pending_puts", "Puts in flight", totals.pending);
  out.gauge("fenced_incarnations", "Incarnations fenced since the start", coordinator.membership().fenced().changes());
  write_counters(out, coordinator.counters());
  write_handover(out, coordinator.handover());
  return out.take();
}

std::string summary_text(Coordinator& coordinator) {
  const auto totals = coordinator.table().totals();
  const auto space = space_totals(*coordinator.membership().segments());
  const auto& c = coordinator.counters();
  const auto& h = coordinator.handover().counters;
  return fmt::format(
      "nodes {} | segments {} | memory {} of {} bytes used ({:.1f}%), {} in quarantine | objects {} ({} bytes) | puts {} committed, {} in "
      "flight, {} without space | exist {} of {} found | get {} of {} found | evicted {} | removed {} | hand-over waits {} ({} satisfied)",
      coordinator.membership().nodes().size(), space.segments, space.used, space.capacity,
      space.capacity == 0 ? 0.0 : 100.0 * static_cast<double>(space.used) / static_cast<double>(space.capacity), space.quarantine,
      totals.objects, totals.bytes, c.put_committed.load(), totals.pending, c.put_no_space.load(), c.lookup_hits.load(), c.lookups.load(),
      c.get_hits.load(), c.gets.load(), c.evicted_objects.load(), c.removed.load(), h.waits.load(), h.satisfied.load());
}

std::string status_json(Coordinator& coordinator, TimeMs now) {
  namespace json = boost::json;
  const auto totals = coordinator.table().totals();
  json::object status;
  status["term"] = coordinator.term().value;
  status["recovering"] = coordinator.recovering(now);
  status["objects"] = totals.objects;
  status["object_bytes"] = totals.bytes;
  status["pending_puts"] = totals.pending;
  json::array nodes;
  for (const auto& node : coordinator.membership().nodes()) {
    const TimeMs seen = node->last_seen;
    json::array paths;
    json::object device_bytes;
    {
      const std::scoped_lock lock(node->paths_mutex);
      for (const auto& report : node->paths) {
        paths.push_back(json::object{{"peer", report.peer()},
                                     {"path", report.path()},
                                     {"reason", report.reason()},
                                     {"written_bytes", report.bytes_written()},
                                     {"read_bytes", report.bytes_read()},
                                     {"failures", report.failures()}});
      }
      device_bytes = {
          {"in_place", node->device_bytes_in_place}, {"by_nic", node->device_bytes_by_nic}, {"staged", node->device_bytes_staged}};
    }
    nodes.push_back(json::object{{"id", node->id.to_string()},
                                 {"name", node->name},
                                 {"host", node->host},
                                 {"port", node->port},
                                 {"last_seen_ms_ago", now > seen ? now - seen : 0},
                                 {"producer", node->producer.load()},
                                 {"retirements_outstanding", node->outbox->outstanding()},
                                 {"paths", std::move(paths)},
                                 {"device_bytes", std::move(device_bytes)}});
  }
  status["nodes"] = std::move(nodes);
  json::array segments;
  const auto mounted = coordinator.membership().segments();
  for (const auto& segment : *mounted) {
    segments.push_back(json::object{{"name", segment->description().name},
                                    {"incarnation", segment->description().incarnation.to_string()},
                                    {"node", segment->description().node.to_string()},
                                    {"protocol", segment->description().protocol},
                                    {"ready", segment->ready()},
                                    {"capacity", segment->capacity()},
                                    {"used", segment->used()},
                                    {"free", segment->free_bytes()},
                                    {"quarantine", segment->quarantine()},
                                    {"viewed", segment->viewed()}});
  }
  status["segments"] = std::move(segments);
  const auto& h = coordinator.handover().counters;
  status["handover"] = json::object{{"waits", h.waits.load()},         {"satisfied", h.satisfied.load()},
                                    {"timed_out", h.timed_out.load()}, {"keys_waited", h.keys_waited.load()},
                                    {"waited_ms", h.waited_ms.load()}, {"expected_keys", coordinator.handover().size()}};
  status["fenced"] = coordinator.membership().fenced().changes();
  return json::serialize(status);
}

}  // namespace moonpool::master
