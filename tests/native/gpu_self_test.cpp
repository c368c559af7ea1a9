// The self-test passes on the emulator, with memory watched; and fails, for each kernel, on a device that leaves that kernel out.
#include "store/gpu_self_test.h"

#include <cstring>

#include "gpu_device.h"

namespace mikv {

namespace {

int left_out = -1; // kernel

int launch(void * queue, const GpuLaunch & l) { return int(l.kernel) == left_out ? gpu_ok : emulated_device.launch(queue, l); }

int run(const GpuChoice & choice, EmulatorReport & report) {
    GpuTally          tally{choice.queue.device->name};
    const std::string fault = gpu_self_test(choice.queue);
    tally.count(fault.empty(), "self-test: " + fault);
    tally.take(report, "self-test");
    GpuDevice broken    = emulated_device;
    broken.launch       = launch;
    report.watch        = false; // it would stop at what was never written
    const int n_kernels = choice.queue.device == &emulated_device ? n_gpu_kernels : 0;
    for (left_out = 0; left_out < n_kernels; left_out++) {
        report.faults.clear();
        const std::string said = gpu_self_test({&broken, &report});
        const char *      name = gpu_kernel(GpuKernel(left_out)).name;
        tally.count(!said.empty(), std::string("not noticed: no ") + name);
        std::printf("without %s: %s\n", name, said.c_str());
    }
    std::printf("%s: %d self-tests, %d faults\n", tally.device.c_str(), tally.cases, tally.faults);
    return tally.faults ? 1 : 0;
}

} // namespace

} // namespace mikv

int main(int argc, char ** argv) {
    mikv::EmulatorReport  report;
    const mikv::GpuChoice choice(argc, argv, report);
    return choice.there ? mikv::run(choice, report) : 77;
}
