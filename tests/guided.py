"""The UNetModel of guided-diffusion (Dhariwal & Nichol 2021), written anew: its module names and its arithmetic."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    def __init__(self, before, after, emb, shifts):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, (1 + shifts) * after))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, after), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(after, after, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        self.shifts = shifts

    def forward(self, x, emb):
        h, e = self.in_layers(x), self.emb_layers(emb)[:, :, None, None]
        if self.shifts:
            scale, shift = e.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + e)
        return self.skip_connection(x) + h


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm, self.heads = nn.GroupNorm(32, width), heads
        self.qkv, self.proj_out = nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x, emb):
        flat = x.flatten(2)
        outputs = []
        for rows in self.qkv(self.norm(flat)).chunk(self.heads, dim=1):  # one head after the other
            q, k, v = rows.chunk(3, dim=1)
            weight = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(-1)
            outputs.append(v @ weight.transpose(1, 2))
        return (flat + self.proj_out(torch.cat(outputs, dim=1))).reshape(x.shape)


class Down(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x, emb):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, emb):
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


class UNetModel(nn.Module):
    """``attended``: the levels with attention, beside the middle."""

    def __init__(self, channels=6, widths=(32, 32, 64, 64), layers=1, attended=(2, 3), heads=4, shifts=True, out=3):
        super().__init__()
        self.width, emb = widths[0], 4 * widths[0]
        self.time_embed = nn.Sequential(nn.Linear(self.width, emb), nn.SiLU(), nn.Linear(emb, emb))
        skips, now = [self.width], self.width
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(channels, self.width, 3, padding=1)])])
        for i, width in enumerate(widths):
            for _ in range(layers):
                attention = [Attention(width, heads)] if i in attended else []
                self.input_blocks.append(nn.ModuleList([Residual(now, width, emb, shifts), *attention]))
                now = width
                skips.append(now)
            if i < len(widths) - 1:
                self.input_blocks.append(nn.ModuleList([Down(now)]))
                skips.append(now)
        middle = [Residual(now, now, emb, shifts), Attention(now, heads), Residual(now, now, emb, shifts)]
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList()
        for i in reversed(range(len(widths))):
            for j in range(layers + 1):
                block = [Residual(now + skips.pop(), widths[i], emb, shifts)]
                block += [Attention(widths[i], heads)] if i in attended else []
                now = widths[i]
                block += [Up(now)] if i and j == layers else []
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, out, 3, padding=1))

    def forward(self, x, t):
        half = self.width // 2
        angles = t[:, None].double() * torch.exp(-math.log(10000) * torch.arange(half).double() / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype))
        h, skips = self.input_blocks[0][0](x), []
        skips.append(h)
        for block in list(self.input_blocks)[1:]:
            for layer in block:
                h = layer(h, emb)
            skips.append(h)
        for layer in self.middle_block:
            h = layer(h, emb)
        for block in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            for layer in block:
                h = layer(h, emb)
        return self.out(h)


def random_unet(seed=0, **settings):
    """With weights that hide nothing: guided-diffusion's own initial output layers are zero."""
    torch.manual_seed(seed)
    net = UNetModel(**settings).eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
            else:
                p.copy_(F.normalize(torch.randn_like(p).flatten(1)).reshape(p.shape))
    return net
