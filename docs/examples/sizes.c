/* What caches would take: the plug-in asked from C, without a model.   sizes N_LAYER N_HEAD_KV HEAD_DIM N_CTX */
#include <stdio.h>
#include <stdlib.h>

#include "ggml-backend.h"
#include "mikv.h"

typedef void (*config_default_fn)(mikv_config *);
typedef mikv_status (*config_bytes_fn)(const mikv_config *, const mikv_shape *, int64_t *);
typedef const char * (*last_error_fn)(void);

int main(int argc, char ** argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: %s N_LAYER N_HEAD_KV HEAD_DIM N_CTX\n", argv[0]);
        return 2;
    }
    ggml_backend_load_all();
    ggml_backend_reg_t mikv = ggml_backend_load(MIKV_LIBRARY);
    if (!mikv) {
        fprintf(stderr, "error: this program's ggml does not load %s\n", MIKV_LIBRARY);
        return 1;
    }
    config_default_fn config_default = (config_default_fn)ggml_backend_reg_get_proc_address(mikv, "mikv_config_default");
    config_bytes_fn   config_bytes   = (config_bytes_fn)ggml_backend_reg_get_proc_address(mikv, "mikv_config_bytes");
    last_error_fn     last_error     = (last_error_fn)ggml_backend_reg_get_proc_address(mikv, "mikv_last_error");

    mikv_shape shape = {atoi(argv[1]), atoi(argv[2]), atoi(argv[4]), 1, atoi(argv[3]), atoi(argv[3])};
    double     f16   = 4.0 * shape.n_layer * shape.n_head_kv * (double)shape.head_dim_k * shape.n_cells / 1048576;
    printf("f16: %.1f MiB\n", f16);
    for (int bits = 2; bits <= 4; bits++) {
        mikv_config config;
        int64_t     size_bytes;
        config_default(&config);
        config.k_bits = config.v_bits = bits;
        if (config_bytes(&config, &shape, &size_bytes) != MIKV_OK) {
            fprintf(stderr, "error: %s\n", last_error());
            return 1;
        }
        printf("base of %d bits, %.0f %% refined to %d: %.1f MiB, %.1f %%\n", bits, 100.0 * config.refined_share,
               config.refined_bits, (double)size_bytes / 1048576, (double)size_bytes / 1048576 / f16 * 100);
    }
    return 0;
}
