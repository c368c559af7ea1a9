// The attention kernels alone, as a token's decode has them: packed bytes a second, beside what a copy on the same device moves. One line of JSON.
//
//   gpu_speed cuda         a layer of an 8B Llama at 131072 cells: 8 KV heads of 128 values, 4 query heads of each
//   gpu_speed              on the emulator, 256 cells: that it can be run; its times say nothing
#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>

#if defined(MIKV_CUDA)
#include <cuda_runtime_api.h>
#endif

#include "codec/params.h"
#include "gpu_device.h"
#include "row_formats.h"

namespace mikv {

namespace {

constexpr int n_heads = 8, group = 4, dim = 128, rounds = 5;

// Keys of 3 bits and values of 2, a tenth of the rows refined to 6.
HeadLayout layout_of(int n_cells) {
    const RowFormat k = {dim, 64, 3, 6}, v = {dim, 64, 2, 6};
    return {k, v, n_cells, n_cells / 10 + 1, 0};
}

std::vector<uint8_t> image_of(const HeadLayout & layout) {
    std::vector<uint8_t> image(layout.total_bytes());
    Random               random(1);
    for (size_t i = 0; i + 4 <= image.size(); i += 4) {
        const uint32_t bits = random.bits();
        std::memcpy(image.data() + i, &bits, 4);
    }
    const HeadView h = view_head(layout, image.data());
    std::fill_n(h.k_params, layout.k.n_groups() * layout.n_cells, pack_params(-1.0f, 1.0f));
    std::fill_n(h.v_params, layout.v.n_groups() * layout.n_cells, pack_params(-1.0f, 1.0f));
    std::fill_n(h.k_mean, layout.n_blocks() * dim, uint16_t(0));
    return image;
}

// What attention over all cells has to read.
double packed_bytes(const HeadLayout & l) {
    return n_heads * (double(l.base_bytes()) + double(l.n_cells / 10) * (l.k.refinement_bytes() + l.v.refinement_bytes()));
}

// Seconds of one of `n` calls, the median of some rounds.
double seconds(const GpuQueue & queue, int n, const std::function<int()> & call) {
    std::vector<double> times;
    for (int round = 0; round <= rounds; round++) {
        const auto began = std::chrono::steady_clock::now();
        for (int i = 0; i < n; i++) {
            if (call() != gpu_ok) {
                return 0.0;
            }
        }
        queue.device->finish(queue.queue);
        times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count() / n);
    }
    std::sort(times.begin() + 1, times.end()); // the first one warms up
    return times[1 + rounds / 2];
}

int copy_on_device([[maybe_unused]] const GpuQueue & queue, uint8_t * to, const uint8_t * from, size_t size_bytes) {
#if defined(MIKV_CUDA)
    if (queue.device == &cuda_device) {
        const int error = cudaMemcpy(to, from, size_bytes, cudaMemcpyDeviceToDevice);
        return error ? error : int(cudaDeviceSynchronize());
    }
#endif
    std::memcpy(to, from, size_bytes);
    return gpu_ok;
}

int run(const GpuChoice & choice) {
    const GpuQueue &     q        = choice.queue;
    const bool           hardware = q.device != &emulated_device;
    const int            n_cells = hardware ? 131072 : 256, n_calls = hardware ? 20 : 1;
    const HeadLayout     layout = layout_of(n_cells);
    const DeviceHeads    heads(q, std::vector<HeadLayout>(n_heads, layout),
                               std::vector<std::vector<uint8_t>>(n_heads, image_of(layout)));
    std::vector<int32_t> place(size_t(n_heads) * n_cells);
    for (size_t i = 0; i < place.size(); i++) {
        const int cell = int(i % size_t(n_cells));
        place[i]       = cell % 10 == 3 ? cell / 10 : gpu_place_base;
    }
    const ScratchShape    shape = {1,   n_heads, group,          1, 1,    n_cells,
                                   dim, dim,     layout.n_slots, 0, true, q.device->n_processors(q.queue)};
    DeviceArray<uint8_t>  memory(q, lay_out_scratch(shape, nullptr).size_bytes);
    const Scratch         t = lay_out_scratch(shape, memory.data());
    DeviceArray<int32_t>  d_place(q, place);
    DeviceArray<uint16_t> mask(q, size_t(n_cells));
    DeviceArray<float>    queries(q, std::vector<float>(size_t(n_heads) * group * dim, 0.05f));
    AttendArgs            a     = {};
    a.layer                     = {heads.data(), nullptr, d_place.data(), 1, n_heads, group, n_cells, n_cells, 1, dim, dim};
    a.q                         = queries.data();
    a.mask                      = mask.data();
    a.part_m                    = t.part_m;
    a.part_l                    = t.part_l;
    a.part_acc                  = t.part_acc;
    a.kept                      = t.kept;
    a.mask_token                = n_cells;
    a.n_queries                 = 1;
    a.n_chunks                  = t.n_chunks;
    a.chunk_cells               = t.chunk_cells;
    a.n_kept                    = t.n_kept;
    AttendArgs fast             = a;
    fast.code_group             = 64;
    const size_t         copied = hardware ? size_t(256) << 20 : 4096;
    DeviceArray<uint8_t> from(q, copied), to(q, copied);
    const double         bytes = packed_bytes(layout), of_fast = seconds(q, n_calls, [&] { return gpu_attend(q, fast); }),
                 of_plain = seconds(q, n_calls, [&] { return gpu_attend(q, a); }),
                 of_copy  = seconds(q, n_calls, [&] { return copy_on_device(q, to.data(), from.data(), copied); });
    if (of_fast <= 0 || of_plain <= 0 || of_copy <= 0) {
        std::printf("a kernel or a copy could not be run\n");
        return 1;
    }
    const double copy = 2.0 * double(copied) / of_copy; // read and written
    std::printf("{\"device\": \"%s\", \"cells\": %d, \"packed_bytes\": %.0f, \"copy_gb_s\": %.1f, \"fast_gb_s\": %.1f, "
                "\"plain_gb_s\": %.1f, \"fast_of_copy\": %.3f}\n",
                q.device->name, n_cells, bytes, copy / 1e9, bytes / of_fast / 1e9, bytes / of_plain / 1e9,
                bytes / of_fast / copy);
    return 0;
}

} // namespace

} // namespace mikv

int main(int argc, char ** argv) {
    mikv::EmulatorReport  report;
    const mikv::GpuChoice choice(argc, argv, report);
    if (!choice.there) {
        return 77;
    }
    const int status = mikv::run(choice);
    for (const std::string & fault : report.faults) {
        std::printf("%s\n", fault.c_str());
    }
    return status || !report.faults.empty() ? 1 : 0;
}
