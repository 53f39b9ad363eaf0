#include "transfer/cuda/exported_memory.h"

#include <unistd.h>

#include <fstream>
#include <string>
#include <utility>

namespace moonpool::transfer::cuda {

namespace {

std::int32_t numa_node_of(const std::string& pci_bus_id) {
  std::int32_t node = -1;
  std::ifstream("/sys/bus/pci/devices/" + pci_bus_id + "/numa_node") >> node;
  return node < 0 ? -1 : node;
}

}  // namespace

Result<ExportedMemory> export_memory(Driver& driver, int device, const AddressRange& range) {
  const auto facts = driver.facts(device);
  if (!facts.ok()) return facts.status();
  if (!facts->no_dma_buf.empty()) return Status(ErrorCode::kNotSupported, facts->name + " cannot be reached by NICs: " + facts->no_dma_buf);
  const auto allocation = driver.locate(range.address);
  if (!allocation || range.address - allocation->base + range.length > allocation->size) {
    return Status(ErrorCode::kNotSupported, "the range is of more than one allocation, which cannot be exported to NICs as one");
  }
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t begin = range.address / page * page;
  const std::uint64_t end = (range.address + range.length + page - 1) / page * page;
  auto file = driver.export_dma_buf(device, begin, end - begin);
  if (!file.ok()) return file.status();
  const DmaBuf buffer{.file = file->get(), .offset = range.address - begin, .numa_node = numa_node_of(facts->pci_bus_id)};
  return ExportedMemory{std::move(*file), buffer};
}

}  // namespace moonpool::transfer::cuda
