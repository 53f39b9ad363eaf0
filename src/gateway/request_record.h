// The story of one request: when each stage was reached, who worked on it, how it ended. The access log and the counters read it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gateway/trace_context.h"

namespace moonpool::gateway {

// What a request's spans need beyond its record: only where they are exported.
struct RequestSpans {
  struct Hop {
    std::string id = TraceContext::new_span_id();
    std::string role;      // "prefill" or "decode"
    std::string instance;  // host:port
    std::chrono::steady_clock::time_point begun{};
    std::chrono::steady_clock::time_point ended{};
    unsigned status = 0;  // of the instance's answer; 0: none came
    std::string error;    // empty: it went well, or its client left
  };
  std::string id = TraceContext::new_span_id();  // of the request's own span
  std::vector<Hop> hops;                         // each try of each hop
};

struct RequestRecord {
  using Clock = std::chrono::steady_clock;
  using Time = Clock::time_point;

  std::string id;      // the client's X-Request-Id, or one of ours
  TraceContext trace;  // the client's, or one that starts here
  std::string method;
  std::string path;                     // without its query, which is never logged
  std::string key;                      // the name of the client's key, empty without
  std::string prefill;                  // the instance that did it, empty when none did
  std::string decode;                   // the instance whose answer the client got
  Time received = Clock::now();         // the whole request is here
  Time hops_started{};                  // the first hop begins: what lies before is the gateway's own
  Time prefill_done{};                  // the prefill hop ended, well or not
  Time first_byte{};                    // the first byte of the answer went to the client
  Time done{};                          // so did the last one, or the client was gone
  unsigned status = 0;                  // as sent to the client; 0: nothing was sent
  unsigned attempts = 0;                // hops tried, prefill and decode
  bool decode_first = false;            // no prefill hop, because there was little to prefill
  bool cut = false;                     // an answer was begun and could not be ended
  bool client_gone = false;             // the client closed before its answer was whole
  std::string error;                    // why it did not go as it should
  std::unique_ptr<RequestSpans> spans;  // null unless they are exported

  Time deadline{};                      // the client's own (X-Request-Timeout-Ms)
  std::string limit_fields;             // whole lines of the answer's head: what the client's key has left
  bool count_tokens = false;            // somebody wants to know the two below
  std::uint64_t answer_events = 0;      // data events of its stream, by all instances
  std::optional<std::uint64_t> tokens;  // of prompt and answer, as the answer says
};

}  // namespace moonpool::gateway
