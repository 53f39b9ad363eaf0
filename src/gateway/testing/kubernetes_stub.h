// An API server as far as EndpointSlices go: list and watch with resource versions, bookmarks, 410 Gone and bearer tokens, in the shapes
// that the API's reference documents. It forgets nothing unless told to.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "gateway/testing/stub_server.h"

namespace moonpool::gateway::testing {

class KubernetesStub {
 public:
  struct Pod {
    std::string address;
    bool ready = true;
  };

  KubernetesStub() { start(); }
  ~KubernetesStub() { stop(); }

  [[nodiscard]] std::uint16_t port() const { return port_; }
  void start() {
    running_ = true;
    server_ =
        std::make_unique<StubServer>([this](const StubRequest& request, const StubServer::Send& send) { serve(request, send); }, port_);
    port_ = server_->port();
  }
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      running_ = false;
    }
    changed_.notify_all();
    server_.reset();
  }

  void require_token(const std::string& token) {
    const std::lock_guard lock(mutex_);
    token_ = token;
  }
  // Adds or replaces a slice of the service "decode"; no pods: deletes it.
  void set_slice(const std::string& name, int port, const std::vector<Pod>& pods) {
    const std::lock_guard lock(mutex_);
    ++version_;
    const bool known = slices_.contains(name);
    const std::string type = pods.empty() ? "DELETED" : known ? "MODIFIED" : "ADDED";
    const std::string object = pods.empty() ? slice_text(name, port, {}) : slice_text(name, port, pods);
    if (pods.empty()) {
      slices_.erase(name);
    } else {
      slices_[name] = object;
    }
    events_.emplace_back(version_, R"({"type":")" + type + R"(","object":)" + object + "}\n");
    changed_.notify_all();
  }
  // All watches end with 410, as after a compaction.
  void compact() {
    const std::lock_guard lock(mutex_);
    ++version_;
    oldest_ = version_;
    changed_.notify_all();
  }
  // All watches end as they do after their time.
  void end_watches() {
    const std::lock_guard lock(mutex_);
    ++rounds_;
    changed_.notify_all();
  }
  [[nodiscard]] int lists() const {
    const std::lock_guard lock(mutex_);
    return lists_;
  }
  [[nodiscard]] int watches() const {
    const std::lock_guard lock(mutex_);
    return watches_;
  }
  [[nodiscard]] int refused() const {
    const std::lock_guard lock(mutex_);
    return refused_;
  }

 private:
  std::string slice_text(const std::string& name, int port, const std::vector<Pod>& pods) const {
    std::string endpoints;
    for (const Pod& pod : pods) {
      endpoints += (endpoints.empty() ? "" : ",") + (R"({"addresses":[")" + pod.address + R"("],"conditions":{"ready":)") +
                   (pod.ready ? "true" : "false") + R"(,"serving":true,"terminating":)" + (pod.ready ? "false" : "true") +
                   R"(},"targetRef":{"kind":"Pod","namespace":"models","name":"p","uid":"u-)" + pod.address + "-" + std::to_string(port) +
                   R"("}})";
    }
    return R"({"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"name":")" + name +
           R"(","namespace":"models","resourceVersion":")" + std::to_string(version_) +
           R"(","labels":{"kubernetes.io/service-name":"decode"}},"addressType":"IPv4","endpoints":[)" + endpoints +
           R"(],"ports":[{"name":"metrics","port":9,"protocol":"TCP"},{"name":"http","port":)" + std::to_string(port) +
           R"(,"protocol":"TCP"}]})";
  }

  static std::string failure(int code, const std::string& reason) {
    return R"({"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":")" + reason + R"(","reason":")" + reason +
           R"(","code":)" + std::to_string(code) + "}";
  }

  void serve(const StubRequest& request, const StubServer::Send& send) {
    std::unique_lock lock(mutex_);
    const auto authorization = request.fields.find("authorization");
    if (!token_.empty() && (authorization == request.fields.end() || authorization->second != "Bearer " + token_)) {
      ++refused_;
      lock.unlock();
      send(StubServer::answer(401, failure(401, "Unauthorized")));
      return;
    }
    const std::string wanted =
        "/apis/discovery.k8s.io/v1/namespaces/models/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Ddecode";
    if (!request.target.starts_with(wanted)) {
      lock.unlock();
      send(StubServer::answer(404, failure(404, "NotFound")));
      return;
    }
    if (request.target.find("&watch=1") == std::string::npos) {
      ++lists_;
      std::string items;
      for (const auto& [name, text] : slices_) items += (items.empty() ? "" : ",") + text;
      const std::string list = R"({"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":")" +
                               std::to_string(version_) + R"("},"items":[)" + items + "]}";
      lock.unlock();
      send(StubServer::answer(200, list));
      return;
    }
    ++watches_;
    watch(request, send, lock);
  }

  void watch(const StubRequest& request, const StubServer::Send& send, std::unique_lock<std::mutex>& lock) {
    const std::size_t at = request.target.find("&resourceVersion=");
    std::uint64_t seen = at == std::string::npos ? 0 : std::stoull(request.target.substr(at + 17));
    const int round = rounds_;
    const auto say = [&](const std::string& bytes) {
      lock.unlock();
      const bool there = send(bytes);
      lock.lock();
      return there;
    };
    if (!say("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")) return;
    while (running_ && round == rounds_) {
      if (seen < oldest_) {
        say(StubServer::chunk(R"({"type":"ERROR","object":)" + failure(410, "too old resource version") + "}\n"));
        break;
      }
      std::string news;
      for (const auto& [version, text] : events_) {
        if (version > seen) news += text;
      }
      seen = std::max(seen, version_);
      if (!news.empty()) {
        news +=
            R"({"type":"BOOKMARK","object":{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":")" +
            std::to_string(seen) + R"("}}})" + "\n";
        // In two pieces: a line may arrive in parts.
        if (!say(StubServer::chunk(news.substr(0, news.size() / 2))) || !say(StubServer::chunk(news.substr(news.size() / 2)))) return;
        continue;
      }
      changed_.wait_for(lock, std::chrono::milliseconds(20));
      if (!say("")) return;
    }
    say("0\r\n\r\n");
  }

  std::uint16_t port_ = 0;
  mutable std::mutex mutex_;  // guards all below but the server
  std::condition_variable changed_;
  bool running_ = false;
  std::uint64_t version_ = 100;
  std::uint64_t oldest_ = 0;
  int rounds_ = 0;
  int lists_ = 0;
  int watches_ = 0;
  int refused_ = 0;
  std::string token_;
  std::map<std::string, std::string> slices_;
  std::vector<std::pair<std::uint64_t, std::string>> events_;
  std::unique_ptr<StubServer> server_;
};

}  // namespace moonpool::gateway::testing
