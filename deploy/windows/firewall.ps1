<#
.SYNOPSIS
Lets the LAN reach llmproxy: an inbound rule for TCP 8000 in the Windows firewall.

.DESCRIPTION
The rule is for the Private profile and for the local subnet. Run it as administrator, as often as you like: it makes the
rule, puts one right that is different, and leaves one alone that is right. Nothing else is changed; networks that are not
Private are named, with the command that makes them so.

.PARAMETER Port
The port that the launcher is published on.

.PARAMETER RemoteAddress
Who may connect: LocalSubnet, Any, or addresses such as 192.168.1.0/24.

.PARAMETER Public
For the Public profile, too. Only with TLS and limited keys: docs/reverse-proxies.md, docs/security.md.

.PARAMETER HyperV
A rule in Hyper-V's firewall, too, which networkingMode=mirrored passes through (Windows 11 22H2 and later).

.PARAMETER Uninstall
Take the rules away.

.EXAMPLE
powershell -ExecutionPolicy Bypass -File firewall.ps1 -WhatIf

.EXAMPLE
powershell -ExecutionPolicy Bypass -File firewall.ps1 -HyperV
#>
[CmdletBinding(SupportsShouldProcess = $true)]
param(
    [ValidateRange(1, 65535)]
    [int]$Port = 8000,
    [string[]]$RemoteAddress = @('LocalSubnet'),
    [switch]$Public,
    [switch]$HyperV,
    [switch]$Uninstall
)

Set-StrictMode -Version 2.0
$ErrorActionPreference = 'Stop'

$name = "llmproxy-$Port"
$title = "vLLM Launcher $Port (Private)"
# What Windows calls the virtual machine of WSL.
$wsl = '{40E0AC32-46A5-438A-A0B2-2B479E8F2E90}'

function Test-Administrator {
    $identity = [Security.Principal.WindowsIdentity]::GetCurrent()
    $principal = New-Object Security.Principal.WindowsPrincipal($identity)
    return $principal.IsInRole([Security.Principal.WindowsBuiltInRole]::Administrator)
}

function Get-Rule {
    return Get-NetFirewallRule -Name $name -ErrorAction SilentlyContinue
}

function Test-Rule {
    param($Rule, [string]$Profiles)
    $ports = $Rule | Get-NetFirewallPortFilter
    $addresses = $Rule | Get-NetFirewallAddressFilter
    $same = ($ports.Protocol -eq 'TCP') -and ("$($ports.LocalPort)" -eq "$Port")
    $same = $same -and ("$($Rule.Profile)" -eq $Profiles) -and ("$($Rule.Enabled)" -eq 'True')
    $same = $same -and ("$($Rule.Action)" -eq 'Allow') -and ("$($Rule.Direction)" -eq 'Inbound')
    return $same -and (@(Compare-Object @($addresses.RemoteAddress) $RemoteAddress).Count -eq 0)
}

function Remove-Rules {
    if (Get-Rule) {
        if ($PSCmdlet.ShouldProcess($title, 'Remove the firewall rule')) {
            Remove-NetFirewallRule -Name $name
            Write-Output "Removed: $title."
        }
    }
    else {
        Write-Output "There is no rule $name."
    }
    if (Get-Command Get-NetFirewallHyperVRule -ErrorAction SilentlyContinue) {
        if (Get-NetFirewallHyperVRule -Name $name -ErrorAction SilentlyContinue) {
            if ($PSCmdlet.ShouldProcess($name, 'Remove the rule of the Hyper-V firewall')) {
                Remove-NetFirewallHyperVRule -Name $name
                Write-Output "Removed: $name in the Hyper-V firewall."
            }
        }
    }
}

function Add-Rule {
    $profiles = 'Private'
    if ($Public) { $profiles = 'Private, Public' }
    $rule = Get-Rule
    if ($rule -and (Test-Rule -Rule $rule -Profiles $profiles)) {
        Write-Output "It is there already: $title."
        return
    }
    if ($PSCmdlet.ShouldProcess($title, "Allow TCP $Port in from $($RemoteAddress -join ', ') on $profiles")) {
        if ($rule) { Remove-NetFirewallRule -Name $name }
        $wanted = @{
            Name          = $name
            DisplayName   = $title
            Description   = 'llmproxy: deploy/windows/firewall.ps1 -Uninstall takes it away.'
            Direction     = 'Inbound'
            Action        = 'Allow'
            Protocol      = 'TCP'
            LocalPort     = $Port
            RemoteAddress = $RemoteAddress
            Profile       = @($profiles -split ', ')
        }
        New-NetFirewallRule @wanted | Out-Null
        Write-Output "Made: $title."
    }
}

function Add-HyperVRule {
    if (-not (Get-Command New-NetFirewallHyperVRule -ErrorAction SilentlyContinue)) {
        Write-Warning 'This Windows has no Hyper-V firewall for WSL; none is needed.'
        return
    }
    if (Get-NetFirewallHyperVRule -Name $name -ErrorAction SilentlyContinue) {
        Write-Output "It is there already: $name in the Hyper-V firewall."
        return
    }
    if ($PSCmdlet.ShouldProcess($name, "Allow TCP $Port in through the Hyper-V firewall of WSL")) {
        $wanted = @{
            Name        = $name
            DisplayName = $title
            Direction   = 'Inbound'
            Action      = 'Allow'
            VMCreatorId = $wsl
            Protocol    = 'TCP'
            LocalPorts  = $Port
        }
        New-NetFirewallHyperVRule @wanted | Out-Null
        Write-Output "Made: $name in the Hyper-V firewall."
    }
}

function Show-Network {
    foreach ($network in @(Get-NetConnectionProfile)) {
        if ("$($network.NetworkCategory)" -eq 'Public') {
            Write-Warning "The network '$($network.Name)' is Public, where the rule does not count. If it is yours:"
            Write-Warning "  Set-NetConnectionProfile -InterfaceIndex $($network.InterfaceIndex) -NetworkCategory Private"
        }
    }
}

if (-not $WhatIfPreference -and -not (Test-Administrator)) {
    Write-Error 'Run this as administrator (or with -WhatIf, to see what it would do).' -ErrorAction Continue
    exit 1
}
if ($Uninstall) {
    Remove-Rules
    exit 0
}
Add-Rule
if ($HyperV) { Add-HyperVRule }
if (-not $Public) { Show-Network }
