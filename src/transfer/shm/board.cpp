#include "transfer/shm/board.h"

#include <string>

namespace moonpool::transfer {

namespace {

std::uint64_t bit_of(std::uint64_t offset, Version version) {
  std::uint64_t hash = (version.count + 0x9E3779B97F4A7C15ULL * (offset + 1)) * 0xBF58476D1CE4E5B9ULL;
  hash ^= hash >> 29;
  return (hash * 0x94D049BB133111EBULL >> 32) % BoardMemory::kBits;
}

}  // namespace

bool BoardView::open(const BoardPlace& place) const { return memory_->tags[place.index % kBoardSegments].load() == place.tag; }

bool BoardView::maybe_retired(std::uint64_t offset, Version version) const {
  const std::uint64_t bit = bit_of(offset, version);
  return (memory_->retired[bit / 64].load() >> (bit % 64) & 1) != 0;
}

// The bit before term and oldest: the owner clears bits only after it has raised those.
Status BoardView::permits(const BoardPlace& place, std::uint64_t offset, Version version) const {
  const bool retired = maybe_retired(offset, version);
  if (!open(place)) return {ErrorCode::kStaleIncarnation, "the segment was closed: ask the master again"};
  const std::uint64_t term = memory_->term.load();
  if (term != version.term.value) {
    return {ErrorCode::kStaleTerm, "the write grant is of term " + std::to_string(version.term.value) + ", the owner follows term " +
                                       std::to_string(term) + ": start the put again"};
  }
  if (retired || version.count < memory_->oldest.load()) {
    return {ErrorCode::kStaleTerm, "the write grant " + std::to_string(version.count) + " was retired: start the put again"};
  }
  return {};
}

Result<std::unique_ptr<Board>> Board::create() {
  auto shared = SharedMemory::create("moonpool board", sizeof(BoardMemory));
  if (!shared.ok()) return shared.status();
  MOONPOOL_RETURN_IF_ERROR(shared->seal_for_others());
  return std::unique_ptr<Board>(new Board(std::move(*shared)));
}

void Board::open(const Incarnation& incarnation) {
  const std::scoped_lock lock(mutex_);
  for (std::uint32_t index = 0; index < kBoardSegments; ++index) {
    if (memory().tags[index].load() != 0) continue;
    const BoardPlace place{index, tag_of(incarnation)};
    if (places_.emplace(incarnation, place).second) memory().tags[index].store(place.tag);
    return;
  }
}

void Board::close(const Incarnation& incarnation) {
  const std::scoped_lock lock(mutex_);
  const auto found = places_.find(incarnation);
  if (found != places_.end()) memory().tags[found->second.index].store(0);
  // Its place stays known: writers that were announced before are still to be told apart. It is taken by the next segment of that index.
}

void Board::adopt(Term term) {
  const std::scoped_lock lock(mutex_);
  if (term.value <= memory().term.load()) return;
  memory().term.store(term.value);
  memory().oldest.store(0);
  for (auto& word : memory().retired) word.store(0);
  retired_.clear();
  grants_of_bit_.clear();
}

void Board::set_oldest(Version oldest) {
  const std::scoped_lock lock(mutex_);
  if (oldest.term.value != memory().term.load() || oldest.count <= memory().oldest.load()) return;
  memory().oldest.store(oldest.count);
  const auto passed = retired_.lower_bound({oldest, 0});
  for (auto it = retired_.begin(); it != passed; ++it) clear_bit(bit_of(it->second, it->first));
  retired_.erase(retired_.begin(), passed);
}

void Board::clear_bit(std::uint64_t bit) {
  const auto found = grants_of_bit_.find(bit);
  if (--found->second > 0) return;
  grants_of_bit_.erase(found);
  memory().retired[bit / 64].fetch_and(~(std::uint64_t{1} << (bit % 64)));
}

void Board::retire(std::uint64_t offset, Version version) {
  const std::scoped_lock lock(mutex_);
  if (version.term.value != memory().term.load() || version.count < memory().oldest.load()) return;
  if (!retired_.emplace(version, offset).second) return;
  const std::uint64_t bit = bit_of(offset, version);
  if (++grants_of_bit_[bit] == 1) memory().retired[bit / 64].fetch_or(std::uint64_t{1} << (bit % 64));
}

std::optional<BoardPlace> Board::place_of(const Incarnation& incarnation) const {
  const std::scoped_lock lock(mutex_);
  const auto found = places_.find(incarnation);
  if (found == places_.end() || !view().open(found->second)) return std::nullopt;
  return found->second;
}

std::optional<Incarnation> Board::segment_at(const BoardPlace& place) const {
  const std::scoped_lock lock(mutex_);
  for (const auto& [incarnation, known] : places_) {
    if (known.index == place.index && known.tag == place.tag) return incarnation;
  }
  return std::nullopt;
}

}  // namespace moonpool::transfer
