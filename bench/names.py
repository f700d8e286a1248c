"""What contestants are called in tables. Imports nothing."""

FUSED = "AdamW(fused=True)"
FUSED_BF16 = "AdamW(fused=True) on fp32 masters, and casts"
FOREACH = "AdamW(foreach=True)"
FOR_LOOP = "AdamW(foreach=False)"
COMPILED = "AdamW, torch.compile"
PLAIN = "prediction in plain PyTorch"
OURS = "WPAdamW"
OURS_WITHOUT_BACKUP = "WPAdamW(backup=False)"
TRITON = 'WPAdamW(backend="triton")'
TRITON_WITHOUT_BACKUP = 'WPAdamW(backup=False, backend="triton")'
SCALED = "WPAdamW(amp=True)"
REPLAYED = "WPAdamW(capturable=True), a CUDA graph"
DEEPSPEED = "DeepSpeedCPUAdam"
COPY = "device copy"
IN_PLACE = "in-place multiply"
