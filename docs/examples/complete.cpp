// A program of its own around stock llama.cpp: loads the plug-in, chooses how the cache stores its tokens, completes a text, and says what the
// cache took.   complete model.gguf "Once upon a time"
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"
#include "mikv.h"

namespace {

// The plug-in's functions, from its registry: nothing of ours is linked.
struct Mikv {
    ggml_backend_reg_t registry;

    explicit Mikv(const char * path) : registry(ggml_backend_load(path)) {
        if (!registry) {
            throw std::runtime_error(std::string("llama.cpp does not load ") + path +
                                     ": it wants the ggml that it was built for");
        }
    }
    template <typename F> F * get(const char * name, F *) const {
        return reinterpret_cast<F *>(ggml_backend_reg_get_proc_address(registry, name));
    }
};
#define MIKV(function) mikv.get(#function, decltype (&function)(nullptr))

void check(const Mikv & mikv, mikv_status status) {
    if (status != MIKV_OK) {
        throw std::runtime_error(MIKV(mikv_last_error)());
    }
}

std::vector<llama_token> tokenize(const llama_vocab * vocab, const std::string & text) {
    std::vector<llama_token> tokens(text.size() + 8);
    const int n = llama_tokenize(vocab, text.data(), int(text.size()), tokens.data(), int(tokens.size()), true, true);
    tokens.resize(n > 0 ? size_t(n) : 0);
    return tokens;
}

void complete(llama_context * context, const llama_vocab * vocab, std::vector<llama_token> tokens, int n_predict) {
    llama_sampler * greedy = llama_sampler_init_greedy();
    for (int i = 0; i < n_predict; i++) {
        if (llama_decode(context, llama_batch_get_one(tokens.data(), int(tokens.size()))) != 0) {
            throw std::runtime_error("the context is full");
        }
        const llama_token next = llama_sampler_sample(greedy, context, -1);
        if (llama_vocab_is_eog(vocab, next)) {
            break;
        }
        char      piece[256];
        const int n = llama_token_to_piece(vocab, next, piece, sizeof piece, 0, false);
        std::printf("%.*s", n > 0 ? n : 0, piece);
        std::fflush(stdout);
        tokens = {next};
    }
    std::printf("\n");
    llama_sampler_free(greedy);
}

void report(const Mikv & mikv, ggml_backend_dev_t device) {
    uint64_t  ids[8];
    const int n = MIKV(mikv_device_caches)(device, ids, 8);
    for (int i = 0; i < n && i < 8; i++) {
        mikv_stats stats;
        check(mikv, MIKV(mikv_cache_stats)(ids[i], &stats));
        std::fprintf(stderr, "KV cache: %.1f MiB, in f16 %.1f MiB; %lld tokens, %lld of %lld rows refined\n",
                     double(stats.bytes_total) / 1048576, double(stats.bytes_f16) / 1048576, (long long)stats.tokens,
                     (long long)stats.rows_refined, (long long)(stats.rows_refined + stats.rows_base + stats.rows_exact));
    }
}

void run(const char * path, const std::string & prompt) {
    ggml_backend_load_all();
    const Mikv         mikv(MIKV_LIBRARY);
    ggml_backend_dev_t devices[] = {ggml_backend_reg_dev_get(mikv.registry, 0), nullptr};

    mikv_config config;
    MIKV(mikv_config_default)(&config);
    config.k_bits        = 4;
    config.v_bits        = 3;
    config.refined_bits  = 6;
    config.refined_share = 0.19f;
    check(mikv, MIKV(mikv_device_configure)(devices[0], &config));

    llama_model_params model_params = llama_model_default_params();
    model_params.devices            = devices; // the layers, and with them the cache, lie on MIKV0
    model_params.n_gpu_layers       = 999;
    llama_model * model             = llama_model_load_from_file(path, model_params);
    if (!model) {
        throw std::runtime_error(std::string(path) + " is no model that llama.cpp can load");
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = 4096;
    params.type_k = params.type_v = GGML_TYPE_Q8_0; // what llama.cpp believes it stores; brings its rotation
    params.flash_attn_type        = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    llama_context * context       = llama_init_from_model(model, params);
    if (!context) {
        throw std::runtime_error("llama.cpp made no context");
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    complete(context, vocab, tokenize(vocab, prompt), 64);
    report(mikv, devices[0]);
    llama_free(context);
    llama_model_free(model);
}

} // namespace

int main(int argc, char ** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: %s model.gguf \"text to go on with\"\n", argv[0]);
        return 2;
    }
    llama_log_set([](ggml_log_level level, const char * text,
                     void *) { level == GGML_LOG_LEVEL_ERROR ? (void)std::fputs(text, stderr) : (void)0; },
                  nullptr);
    try {
        run(argv[1], argv[2]);
    } catch (const std::exception & error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
    return 0;
}
