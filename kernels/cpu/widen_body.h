/* Wide panels: a panel of narrow codes unpacked to a byte a code, once for all tiles of a sweep. Read after gemm_body.h. */
/* The scales of one block as floats, and what lies beside them. */
INLINE void widen_scales(const panel_scale scale, const panel_format *f, const uint8_t *block, uint8_t *out) {
    const int groups = scale == PANEL_Q4K ? 8 : scale == PANEL_Q6K ? 16 : 1;
    for (int column = 0; column < PANEL_COLUMNS; column += V_LANES) {
        for (int g = 0; g < groups; g++)
            vf_store((float *)(void *)out + g * PANEL_COLUMNS + column, group_scale(scale, 0, block, g, column));
        if (scale != PANEL_Q4K) continue;
        vf_store((float *)(void *)(out + 1024) + column, block_dmin(0, block, column));
        for (int pair = 0; pair < 4; pair++) vi_store(out + 1152 + pair * 128 + column * 4, pair_mins(0, block, pair, column));
    }
    if (f->points) memcpy(out + 128, block + (scale == PANEL_F16 ? 64 : 128), PANEL_COLUMNS);
}

INLINE void widen_units(const int bits, const panel_format *f, const uint8_t *from, uint8_t *to) {
    const int steps = f->unit / 4;
    for (int u = 0; u < f->block / f->unit; u++, from += f->unit_bytes, to += f->unit * 32)
        for (int s = 0; s < steps; s++)
#pragma GCC unroll 2
            for (int j = 0; j < HALF; j++) {
                vi w[2];
                load_step(bits, 0, from, s, j, w);
                vi_store(to + s * 128 + j * V_BYTES, w[0]);
                vi_store(to + s * 128 + (j + HALF) * V_BYTES, w[1]);
            }
}

static void widen_block(const panel_format *f, const uint8_t *block, const panel_format *wide, uint8_t *out) {
    const uint8_t *from = block + f->scale_bytes;
    uint8_t *to = out + wide->scale_bytes;
    if (wide->wide == 1 || f->scale == PANEL_INT) memcpy(out, block, (size_t)f->scale_bytes);
    else if (f->scale == PANEL_F16) widen_scales(PANEL_F16, f, block, out);
    else if (f->scale == PANEL_F32) widen_scales(PANEL_F32, f, block, out);
    else if (f->scale == PANEL_Q4K) widen_scales(PANEL_Q4K, f, block, out);
    else if (f->scale == PANEL_Q6K) widen_scales(PANEL_Q6K, f, block, out);
    if (f->bits == 4) widen_units(4, f, from, to);
    if (f->bits == 5) widen_units(5, f, from, to);
    if (f->bits == 6) widen_units(6, f, from, to);
}

#ifdef V_AVX512
/* level * c - shift of the 4 k of each lane, in bytes; the level twice in 16 bits, the shift in every byte. */
INLINE vi times_level(vi codes, vi level, vi shift) {
    const vi low = _mm512_set1_epi16(255);
    vi even = _mm512_mullo_epi16(_mm512_and_si512(low, codes), level), odd = _mm512_mullo_epi16(_mm512_andnot_si512(low, codes), level);
    return _mm512_sub_epi8(_mm512_or_si512(_mm512_and_si512(low, even), odd), shift);
}

/* The levels of 16 columns for times_level(), and their products with the zero points, less `below`. */
INLINE vi block_level(const panel_format *f, const uint8_t *block, int column, int below, vi *shift) {
    vi level = vi_u8(block + column), zero = f->points ? vi_u8(block + 32 + column) : vi_set1(f->zero);
    vi byte = _mm512_and_si512(vi_sub(vi_mul(zero, level), vi_set1(below)), vi_set1(255));
    *shift = vi_mul(byte, vi_set1(0x01010101));
    return vi_mul(level, vi_set1(0x10001));
}

INLINE void widen_products(const int bits, const panel_format *f, const uint8_t *block, uint8_t *to) {
    const uint8_t *from = block + f->scale_bytes;
    vi level[2], shift[2];
    for (int h = 0; h < 2; h++) level[h] = block_level(f, block, 16 * h, 128, &shift[h]);
    for (int u = 0; u < f->block / 32; u++, from += f->unit_bytes)
#pragma GCC unroll 8
        for (int s = 0; s < 8; s++, to += 128) {
            vi w[2];
            load_step(bits, 0, from, s, 0, w);
            for (int h = 0; h < 2; h++) vi_store(to + 64 * h, times_level(w[h], level[h], shift[h]));
        }
}

/* Integer scales times what they scale are int8 (QE_FACT_INT8_PRODUCT): plus 128, codes of 8 bits under one scale a row. */
static bool wide_form(const panel_format *f, panel_format *out) {
    if (f->scale != PANEL_INT) return panel_format_wide(f, 2, out);
    *out = *f;
    out->scale = PANEL_CHANNEL, out->bits = 8, out->wide = 2, out->points = 0, out->zero = 128;
    out->scale_bytes = 0, out->unit_bytes = f->unit * 32, out->block_bytes = f->block * 32;
    out->panel_bytes = PANEL_HEAD + f->blocks * out->block_bytes;
    return true;
}
#else
static bool wide_form(const panel_format *f, panel_format *out) { return panel_format_wide(f, 1, out); }
#endif

static void widen(const panel_format *f, const uint8_t *panel, const panel_format *wide, uint8_t *out) {
    if (f->scale == PANEL_CHANNEL || f->scale == PANEL_INT) {
        memcpy(out, panel, PANEL_HEAD);
        panel += PANEL_HEAD, out += PANEL_HEAD;
    }
    for (int b = 0; b < f->blocks; b++, panel += f->block_bytes, out += wide->block_bytes) {
#ifdef V_AVX512
        if (f->scale == PANEL_INT && f->bits == 4) widen_products(4, f, panel, out);
        else if (f->scale == PANEL_INT) widen_products(8, f, panel, out);
        else
#endif
            widen_block(f, panel, wide, out);
    }
}
