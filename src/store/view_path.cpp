#include "store/view_path.h"

#include <fmt/format.h>

#include <map>
#include <optional>
#include <utility>

#include "store/wire_parts.h"

namespace moonpool::store {

class ViewPath::Call {
 public:
  Call(const ViewPath& path, std::span<const std::string_view> keys, Deadline deadline)
      : path_(path), keys_(keys), deadline_(deadline), views_(keys.size()) {}

  std::vector<Result<View>> run();

 private:
  struct Item {
    std::size_t index = 0;
    GetPath::Location location;
    const GetPath::Location::Copy* copy = nullptr;
    [[nodiscard]] transfer::ExtentRef extent() const { return {copy->segment->incarnation, copy->offset, location.size, location.version}; }
  };

  void locate();
  void pin(const transfer::Peer& peer, const std::vector<Item*>& work);
  void copy(const transfer::Peer& peer, const std::vector<Item*>& work);
  void get_the_rest();

  const ViewPath& path_;
  const std::span<const std::string_view> keys_;
  const Deadline deadline_;
  std::vector<std::optional<Result<View>>> views_;  // empty: to be had by an ordinary get
  std::vector<Item> items_;
};

std::vector<Result<View>> ViewPath::Call::run() {
  locate();
  std::map<std::pair<NodeId, net::Endpoint>, std::vector<Item*>> owners;
  for (auto& item : items_) owners[{item.copy->segment->peer.node, item.copy->segment->peer.endpoint}].push_back(&item);
  for (const auto& [id, work] : owners) {
    const transfer::Peer peer{id.first, id.second};
    std::uint64_t bytes = 0;
    for (const Item* item : work) bytes += item->location.size;
    if (bytes >= kWorthAPin) {
      pin(peer, work);
    } else {
      copy(peer, work);
    }
  }
  get_the_rest();
  std::vector<Result<View>> result;
  result.reserve(views_.size());
  for (auto& view : views_) result.push_back(std::move(*view));
  return result;
}

void ViewPath::Call::locate() {
  std::vector<std::string_view> valid;
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < keys_.size(); ++i) {
    if (check_key(keys_[i]) != ErrorCode::kOk) continue;
    valid.push_back(keys_[i]);
    places.push_back(i);
  }
  if (valid.empty()) return;
  auto located = path_.gets_.locate(valid, deadline_);
  items_.reserve(located.size());
  for (std::size_t i = 0; i < located.size(); ++i) {
    if (located[i].code() == ErrorCode::kObjectNotFound) views_[places[i]].emplace(located[i].status());
    if (!located[i].ok() || located[i]->copies.empty()) continue;
    Item& item = items_.emplace_back(Item{places[i], std::move(*located[i])});
    item.copy = &item.location.copies.front();
    for (const auto& one : item.location.copies) {
      if (one.segment->peer.node == path_.self_) item.copy = &one;
    }
  }
}

void ViewPath::Call::pin(const transfer::Peer& peer, const std::vector<Item*>& work) {
  std::vector<transfer::ViewOperation> operations(work.size());
  for (std::size_t i = 0; i < work.size(); ++i) {
    operations[i].extent = work[i]->extent();
    operations[i].checksum = work[i]->location.checksum;
  }
  path_.paths_.view(peer, operations, deadline_);
  for (std::size_t i = 0; i < work.size(); ++i) {
    if (operations[i].status.ok()) views_[work[i]->index].emplace(View(operations[i].bytes, std::move(operations[i].pin)));
  }
}

void ViewPath::Call::copy(const transfer::Peer& peer, const std::vector<Item*>& work) {
  std::vector<std::vector<std::byte>> memory(work.size());
  std::vector<MutableBytes> pieces(work.size());
  std::vector<transfer::ReadOperation> operations(work.size());
  for (std::size_t i = 0; i < work.size(); ++i) {
    const auto& location = work[i]->location;
    memory[i].resize(location.size);  // at most kWorthAPin in all
    pieces[i] = memory[i];
    operations[i].extent = work[i]->extent();
    operations[i].length = location.size;
    operations[i].destination = {&pieces[i], 1};
    operations[i].checksum = location.checksum;
  }
  path_.paths_.read(peer, operations, deadline_);
  for (std::size_t i = 0; i < work.size(); ++i) {
    if (operations[i].status.ok()) views_[work[i]->index].emplace(View(std::move(memory[i])));
  }
}

void ViewPath::Call::get_the_rest() {
  std::vector<std::string_view> keys;
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < views_.size(); ++i) {
    if (views_[i]) continue;
    keys.push_back(keys_[i]);
    places.push_back(i);
  }
  if (keys.empty()) return;
  std::vector<std::vector<std::byte>> memory(keys.size());
  const auto plan = [&](std::size_t index, std::uint64_t size) -> Result<GetPath::Parts> {
    try {
      memory[index].resize(size);
    } catch (const std::exception&) {
      return {ErrorCode::kBufferOverflow, fmt::format("no memory for an object of {} bytes", size)};
    }
    return GetPath::Parts{{0, size, GetPath::Destination{memory[index]}}};
  };
  const auto results = path_.gets_.get(keys, plan, deadline_);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (results[i].ok()) {
      views_[places[i]].emplace(View(std::move(memory[i])));
    } else {
      views_[places[i]].emplace(results[i].status());
    }
  }
}

std::vector<Result<View>> ViewPath::view(std::span<const std::string_view> keys, Deadline deadline) const {
  return Call(*this, keys, deadline).run();
}

}  // namespace moonpool::store
